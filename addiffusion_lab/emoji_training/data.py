"""Training data: banks of scenes, token ids, and augmentation that imitates unfinished samples."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn import functional as F
from transformers import CLIPTokenizer

from addiffusion_env.prompts import stable_hash
from addiffusion_lab.emoji_training.config import TrainConfig
from addiffusion_lab.emoji_training.layouts import sample_scenes
from addiffusion_lab.emoji_training.run import earlier

CHUNK = 4096
"""Number of scenes per seed."""

MAX_TOKENS = 32

Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class SceneBank:
    """Scenes to train on.

    Attributes:
        texts: N prompts.
        layouts: (N, 4, 5) float32, see :func:`.layouts.layout`.
    """

    texts: list[str]
    layouts: torch.Tensor


def draw_chunks(draw: Callable[[int, int], Drawn], count: int, seed: int, stream: str, workers: int = 1) -> list[Drawn]:
    """Draws ``count`` items in chunks, in several processes; the result does not depend on their number.

    Args:
        draw: a module-level function of (count, seed).
        count: total number of items.
        seed: base seed.
        stream: name of the random stream; streams share no seeds.
        workers: number of processes.
    """
    sizes = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
    seeds = [stable_hash("emoji scenes", stream, seed, index) for index in range(len(sizes))]
    if workers == 1 or len(sizes) == 1:
        return [draw(size, chunk_seed) for size, chunk_seed in zip(sizes, seeds, strict=True)]
    # Spawned, not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(draw, sizes, seeds))


def _draw_bank(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    scenes, layouts = sample_scenes(count, seed)
    return [scene.text for scene in scenes], layouts


def scene_bank(config: TrainConfig, stream: str, device: torch.device) -> SceneBank:
    """Draws ``config.scenes`` scenes; the layouts are on ``device``."""
    parts = draw_chunks(_draw_bank, config.scenes, config.seed, stream, config.workers)
    texts = [text for part, _ in parts for text in part]
    return SceneBank(texts, torch.from_numpy(np.concatenate([layouts for _, layouts in parts])).to(device))


def load_tokenizer(config: TrainConfig) -> Any:
    """The ``CLIPTokenizer`` in ``config.out``.

    Raises:
        WeightsError: when stage tokenizer was not run.
    """
    return CLIPTokenizer.from_pretrained(earlier(config, "tokenizer", "tokenizer"))


def tokenize(tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Token ids of prompts, padded: (N, 32) int64."""
    ids = tokenizer(list(texts), padding="max_length", max_length=MAX_TOKENS, truncation=True).input_ids
    return torch.tensor(ids, dtype=torch.int64)


def augment(images: torch.Tensor, generator: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Blur, noise and brightness of random strength per image, imitating a decoder or an unfinished sample.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        generator: generator on the images' device.
        strength: strength of the noise; at 1 its standard deviation is up to 0.06.
    """

    def uniform(channels: int = 1) -> torch.Tensor:
        return torch.rand(len(images), channels, 1, 1, device=images.device, generator=generator)

    amount = uniform()
    blurred = _blur(images) * amount + images * (1 - amount)
    images = torch.where(amount < 0.5, images, blurred)
    noise = torch.randn(images.shape, device=images.device, generator=generator)
    images = images + strength * 0.06 * uniform() * noise
    return (images * (1 + 0.1 * (uniform() - 0.5)) + 0.06 * (uniform(3) - 0.5)).clamp(-1, 1)


def _blur(images: torch.Tensor) -> torch.Tensor:
    """A 5x5 binomial filter, reflected at the borders."""
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=images.device) / 16
    kernel = (row[:, None] * row).expand(3, 1, 5, 5)
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)


def degrade(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A degraded copy of each image: blended with its 16x16 version by a random amount, with noise for half of them."""
    size = images.shape[-2:]
    coarse = F.interpolate(F.interpolate(images, scale_factor=0.25, mode="area"), size=size, mode="bilinear")
    shape = (len(images), 1, 1, 1)
    amount = torch.rand(shape, device=images.device, generator=generator)
    noisy = torch.rand(shape, device=images.device, generator=generator) < 0.5
    noise = torch.randn(images.shape, device=images.device, generator=generator)
    return images * (1 - amount) + coarse * amount + 0.25 * amount * noise * noisy

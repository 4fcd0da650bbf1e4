"""An emoji backbone whose features keep the layout: the denoiser's middle block in cells, and attention from phrases.

The study :mod:`.places` measures what they say of an attempt, and in how many seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from addiffusion_env.backbones.batches import Conditioning, Prediction
from addiffusion_env.backbones.emoji import EmojiBackbone
from addiffusion_env.envs.settings import load_scorers
from addiffusion_env.evaluation.sections import Section, Table
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts

GRID = 4
"""Cells a side. The middle block of the emoji world has eight a side, and an object covers about three of them."""
TOKENS = 10
"""Content tokens of a prompt whose attention is kept: of "a photo of two red cups left of a dog" two, red, cups ..."""


class MappedEmoji(EmojiBackbone):
    """The emoji world's backbone with other features: (B, 128 * 16) cells, then (B, 10 * 16) attention of tokens."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.cells = torch.empty(0)
        self.parts.unet.mid_block.register_forward_hook(self._keep)
        width = int(self.parts.unet.config.block_out_channels[-1])
        self.capabilities = replace(self.capabilities, feature_dim=(width + TOKENS) * GRID**2)

    not_identity = ("cells",)

    def _keep(self, module: Any, inputs: Any, output: Tensor) -> None:
        self.cells = adaptive_avg_pool2d(output.detach().float(), GRID).flatten(1)

    def predict(
        self,
        x: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        guidance_scale: Tensor,
        capture: Tensor | None = None,
    ) -> Prediction:
        """See :meth:`Backbone.predict`; attention is always read, and returned in the features."""
        found = super().predict(x, sigma, conditioning, guidance_scale, torch.ones(len(x), dtype=torch.bool))
        assert found.attention is not None
        maps = x.new_zeros(len(x), TOKENS, GRID, GRID)
        for row, content in enumerate(conditioning.content):
            kept = list(content)[:TOKENS]
            maps[row, : len(kept)] = adaptive_avg_pool2d(found.attention[row, kept], GRID)
        return replace(found, attention=None, features=torch.cat([self.cells[: len(x)], maps.flatten(1)], dim=1))


def maps_of(features: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> (..., D) of the features (..., F) of :class:`MappedEmoji`; coarser cells are means of its own."""
    before, attention = features.shape[:-1], TOKENS * GRID**2
    cells = features[..., :-attention].reshape(*before, -1, GRID, GRID)
    coarse = cells.reshape(*before, -1, 2, GRID // 2, 2, GRID // 2).mean((-3, -1))
    return {
        "middle block, averaged": cells.mean((-2, -1)),
        "middle block, 2x2 cells": coarse.reshape(*before, -1),
        "middle block, 4x4 cells": cells.reshape(*before, -1),
        "attention of each word, 4x4 cells": features[..., -attention:],
    }


def seconds_section(lanes: int, rounds: int = 5) -> Section:
    """Process time of one lane's share of an evaluation and of each source, measured in turn; the least of all rounds.

    Each is what its source adds to an evaluation without guidance.
    """
    backbone = MappedEmoji.from_pretrained()
    scorers = load_scorers(backbone)
    prompts = EmojiPrompts("train").take(lanes, seed=0)
    conditioning = backbone.encode([prompt.text for prompt in prompts])
    x = torch.randn(lanes, *backbone.capabilities.latent_shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.from_numpy(np.full(lanes, backbone.sigmas(6, "trailing")[2]))
    scale = torch.ones(lanes, dtype=torch.float64)
    width = int(backbone.parts.unet.config.block_out_channels[-1])
    block = torch.randn(lanes, width, *(side // 2 for side in x.shape[2:]))
    evaluate: Callable[[], Any] = lambda: EmojiBackbone.predict(backbone, x, sigma, conditioning, scale)  # noqa: E731
    clean = evaluate().x0
    work: dict[str, Callable[[], Any]] = {
        "an evaluation": evaluate,
        "preview: decoded and scored": lambda: scorers.scores(backbone.preview(clean), prompts),
        "middle block, averaged": lambda: block.mean((2, 3)),
        "middle block, 2x2 cells": lambda: adaptive_avg_pool2d(block, 2),
        "with attention": lambda: backbone.predict(x, sigma, conditioning, scale),
    }
    least = dict.fromkeys(work, float("inf"))
    for _ in range(rounds):
        for name, call in work.items():
            began = time.process_time()
            call()
            least[name] = min(least[name], time.process_time() - began)
    least["attention of each word, 4x4 cells"] = least.pop("with attention") - least["an evaluation"]
    rows = [(name, f"{1000 * spent / lanes:.3f}") for name, spent in least.items()]
    head = ("work", f"milliseconds of a core per lane and step, {lanes} lanes")
    return Section("Seconds", (Table(head, tuple(rows)),))

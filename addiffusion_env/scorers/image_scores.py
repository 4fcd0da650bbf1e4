"""Scores of a batch of images: one batched pass of each scorer, as float32 arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from addiffusion_env.backbones.batches import Batched
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers import Scorer, check_pairs, named, require_finite
from addiffusion_env.scorers.clip import ClipScorer
from addiffusion_env.scorers.dino import DinoEmbedder


@dataclass(frozen=True, eq=False)
class ImageScores(Batched):
    """Scores and embeddings of ``B`` images; all arrays are float32.

    Attributes:
        clip_image: (B, D) unit CLIP embeddings of the images.
        clip_text: (B, D) unit CLIP embeddings of their prompts.
        clip_score: (B,) raw cosines of the two, in [-1, 1].
        preference: (B,) standard deviations.
        dino: (B, D2) unit DINO embeddings; (B, 0) without a DINO model.
    """

    clip_image: np.ndarray
    clip_text: np.ndarray
    clip_score: np.ndarray
    preference: np.ndarray
    dino: np.ndarray

    def __len__(self) -> int:
        return len(self.clip_score)


class ImageScorers:
    """The scorers that compute :class:`ImageScores`.

    Args:
        clip: embeds images and texts.
        preference: scores images for prompts, in standard deviations.
        dino: embeds images; ``None`` leaves :attr:`ImageScores.dino` at width 0.
    """

    def __init__(self, clip: ClipScorer, preference: Scorer, dino: DinoEmbedder | None) -> None:
        self.clip = clip
        self.preference = preference
        self.dino = dino

    @property
    def clip_dim(self) -> int:
        """Length of a CLIP embedding."""
        return self.clip.dim

    @property
    def dino_dim(self) -> int:
        """Length of a DINO embedding; 0 without a DINO model."""
        return self.dino.dim if self.dino is not None else 0

    def scores(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> ImageScores:
        """Scores (B, 3, H, W) images in [-1, 1] of ``B`` prompts; one batched pass of each scorer.

        Raises:
            ImageRangeError: for images of the wrong shape, type or range.
            PromptError: when there is not one prompt per image.
            NumericsError: when a value is not finite, naming the scorer and the prompt.
            ScorerError: when a scorer raises an error, naming it.
        """
        texts = check_pairs(images, prompts)
        with named(f"clip ({self.clip.label})") as name:
            clip_image = require_finite(self.clip.embed_images(images), name, texts)
            clip_text = self.clip.embed_texts(prompts)
            clip_score = self.clip.cosines(clip_image, clip_text, texts)
        with named(self.preference.name) as name:
            preference = require_finite(self.preference.score(images, prompts), name, texts)
        dino = torch.zeros(len(images), 0)
        if self.dino is not None:
            with named(f"dino ({self.dino.label})") as name:
                dino = require_finite(self.dino.embed_images(images), name, texts)
        return ImageScores(*(value.numpy() for value in (clip_image, clip_text, clip_score, preference, dino)))


class NoScorers(ImageScorers):
    """Placeholder where no scores are needed: loads and computes nothing.

    Returns NaN scores and embeddings of width 0.
    """

    def __init__(self) -> None:
        """Needs nothing."""

    @property
    def clip_dim(self) -> int:
        """No embedding: 0."""
        return 0

    @property
    def dino_dim(self) -> int:
        """No embedding: 0."""
        return 0

    def scores(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> ImageScores:
        """NaN scores of ``B`` images.

        Raises:
            ImageRangeError: for images of the wrong shape, type or range.
            PromptError: when there is not one prompt per image.
        """
        count = len(check_pairs(images, prompts))
        nothing, unknown = np.zeros((count, 0), np.float32), np.full(count, np.nan, np.float32)
        return ImageScores(nothing, nothing, unknown, unknown, nothing)


class ScorerLoader(Protocol):
    """Loads the scorers of a backbone's images; named in its :class:`.Traits`.

    ``paths`` maps a part to a local folder, a hub id or a registry name that replaces it; empty for all defaults.
    """

    def check(self, paths: Mapping[str, str]) -> Mapping[str, str]:
        """Returns ``paths`` when they are valid; loads nothing.

        Raises:
            ConfigError: when they are not.
        """

    def clip_width(self, paths: Mapping[str, str]) -> int:
        """Width of the CLIP embedding; loads no weights."""

    def load(self, device: torch.device | str, paths: Mapping[str, str]) -> ImageScorers:
        """Loads them."""

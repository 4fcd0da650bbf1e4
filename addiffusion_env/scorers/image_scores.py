"""Scores of images: one batched pass of each scorer, as float32 arrays; finished images with their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch

from addiffusion_env.backbones.batches import Batched
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers import Scorer, check_pairs, named, require_finite
from addiffusion_env.scorers.clip import ClipScorer
from addiffusion_env.scorers.dino import DinoEmbedder
from addiffusion_env.scorers.utility import Utility


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

    def utility(self, by: Utility, step: int = 0) -> float:
        """The utility of the first image: a finished one, or the preview of a step of the schedule."""
        return float(by(self.preference, self.clip_score, self.clip_text, step)[0])

    def state(self) -> dict[str, torch.Tensor]:
        """The arrays as named tensors, from which :meth:`restored` restores the scores."""
        return {item.name: torch.from_numpy(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def restored(cls, state: Mapping[str, torch.Tensor] | None) -> ImageScores | None:
        """Restores :meth:`state`; ``None`` where there were no scores."""
        return None if state is None else cls(**{name: value.numpy() for name, value in state.items()})


@dataclass(frozen=True, eq=False)
class ImageScoresBatch:
    """Scores of the images of ``B`` lanes.

    Attributes:
        scores: B rows; zeros for lanes without scores.
        known: (B,) bool, which lanes have scores.
    """

    scores: ImageScores
    known: np.ndarray

    @classmethod
    def of(cls, scores: Sequence[ImageScores | None], clip_dim: int = 0) -> ImageScoresBatch:
        """Joins scores of one row each; if all are ``None``, CLIP embeddings are ``clip_dim`` wide and DINO's 0."""
        found = next((scores for scores in scores if scores is not None), None)
        if found is None:
            clip, score = np.zeros((1, clip_dim), np.float32), np.zeros(1, np.float32)
            blank = ImageScores(clip, clip, score, score, np.zeros((1, 0), np.float32))
        else:
            blank = ImageScores(*(np.zeros_like(getattr(found, item.name)) for item in fields(ImageScores)))
        known = np.array([scores is not None for scores in scores])
        return cls(ImageScores.cat([blank if scores is None else scores for scores in scores]), known)

    def score(self, name: str, absent: float = 0.0) -> np.ndarray:
        """(B,) float64 scores: ``clip_score`` or ``preference``; ``absent`` where there are no scores."""
        return np.where(self.known, getattr(self.scores, name).astype(np.float64), absent)

    def clip_text(self, clip: ClipScorer, prompts: Sequence[Prompt]) -> np.ndarray:
        """(B, D) CLIP embeddings of the lanes' prompts, from the scores where every lane has them."""
        return self.scores.clip_text if self.known.all() else clip.embed_texts(prompts).numpy()

    def similarity(self, other: ImageScoresBatch) -> np.ndarray:
        """(B,) cosine of the DINO embeddings of two images of each lane; 0 where one is missing."""
        both = self.known & other.known
        found = np.zeros(len(both))
        found[both] = (self.scores.dino[both] * other.scores.dino[both]).sum(1) if both.any() else 0.0
        return found

    def liked(self, utility: Utility, step: np.ndarray | int = 0) -> np.ndarray:
        """(B,) float64 utility of each image; 0 where there are no scores.

        ``step`` is (B,): 0 for finished images, and the step of the schedule for previews.
        """
        if not self.known.any():
            return np.zeros(len(self.known))
        at = np.where(self.known, step, 0)
        value = utility(self.scores.preference, self.scores.clip_score, self.scores.clip_text, at)
        return np.where(self.known, value, 0.0)


@dataclass(frozen=True)
class GeneratedImage:
    """A finished image.

    Attributes:
        tensor: (3, H, W) float32 in [-1, 1].
        scores: its scores.
        utility: its utility, where the process compares finished images (``refine.accept=best``); ``None`` otherwise,
            and for an image restored from a saved state.
    """

    tensor: torch.Tensor
    scores: ImageScores
    utility: float | None = None

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return to_pixels(self.tensor)

    def state(self) -> dict[str, Any]:
        """Named tensors, from which :meth:`restored` restores the image."""
        return {"image": self.tensor, "look": self.scores.state()}

    @classmethod
    def restored(cls, state: Mapping[str, Any] | None) -> GeneratedImage | None:
        """Restores :meth:`state`; ``None`` where there was no image."""
        if state is None:
            return None
        scores = ImageScores.restored(state["look"])
        assert scores is not None
        return cls(state["image"], scores)


def utilities_of(utilities: Sequence[Utility | None], scores: Sequence[ImageScores | Exception]) -> list[float | None]:
    """The utility of each image, computed together; ``None`` where none is asked for or the image has no scores."""
    groups: dict[Utility, dict[int, ImageScores]] = {}
    for row, (utility, own) in enumerate(zip(utilities, scores, strict=True)):
        if utility is not None and isinstance(own, ImageScores):
            groups.setdefault(utility, {})[row] = own
    found: dict[int, float] = {}
    for utility, images in groups.items():
        batch = ImageScores.cat(list(images.values()))
        values = utility(batch.preference, batch.clip_score, batch.clip_text)
        found.update(zip(images, values.tolist(), strict=True))
    return [found.get(row) for row in range(len(scores))]


CONVERTED_AT_ONCE = 16
"""Images that are converted to pixels together: one transfer from the device for all of them."""


def pixels_of(images: Sequence[GeneratedImage]) -> np.ndarray:
    """(B, H, W, 3) uint8 of finished images of one size, at least one."""
    tensors = [image.tensor for image in images]
    parts = (tensors[at : at + CONVERTED_AT_ONCE] for at in range(0, len(tensors), CONVERTED_AT_ONCE))
    return np.concatenate([to_pixels(torch.stack(part)) for part in parts])


def to_pixels(image: torch.Tensor) -> np.ndarray:
    """(..., 3, H, W) in [-1, 1] -> (..., H, W, 3) uint8."""
    scaled = image.clamp(-1, 1).add_(1).mul_(127.5).round_()  # in place on the copy that clamp makes
    return scaled.byte().movedim(-3, -1).cpu().numpy()


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

    def embed_texts(self, prompts: Sequence[Prompt]) -> None:
        """Embeds texts in advance, always in one order: in another batch they are rounded differently."""
        self.clip.embed_texts(prompts)

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

    def embed_texts(self, prompts: Sequence[Prompt]) -> None:
        """Nothing to embed."""

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

"""Finished images: as tensors with their scores, as pixels, and as plain tensors in a saved state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from addiffusion_env.scorers.image_scores import ImageScores
from addiffusion_env.scorers.utility import Utility


@dataclass(frozen=True)
class GeneratedImage:
    """A finished image.

    Attributes:
        tensor: (3, H, W) float32 in [-1, 1].
        scores: its scores.
        utility: its utility, where the process compares finished images (``refine.accept=best``); ``None`` otherwise,
            and for an image restored from a saved state.
    """

    tensor: Tensor
    scores: ImageScores
    utility: float | None = None

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return to_pixels(self.tensor)


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


def to_pixels(image: Tensor) -> np.ndarray:
    """(..., 3, H, W) in [-1, 1] -> (..., H, W, 3) uint8."""
    scaled = image.clamp(-1, 1).add_(1).mul_(127.5).round_()  # in place on the copy that clamp makes
    return scaled.byte().movedim(-3, -1).cpu().numpy()


def scores_state(scores: ImageScores | None) -> dict[str, Tensor] | None:
    """Scores as named tensors."""
    if scores is None:
        return None
    return {item.name: torch.from_numpy(getattr(scores, item.name)) for item in fields(scores)}


def image_state(image: GeneratedImage | None) -> dict[str, Any] | None:
    """A finished image as named tensors."""
    return None if image is None else {"image": image.tensor, "look": scores_state(image.scores)}


def restore_image(state: Mapping[str, Any] | None) -> GeneratedImage | None:
    """Restores an image from :func:`image_state`."""
    if state is None:
        return None
    scores = restore_scores(state["look"])
    assert scores is not None
    return GeneratedImage(state["image"], scores)


def restore_scores(state: Mapping[str, Tensor] | None) -> ImageScores | None:
    """Restores scores from :func:`scores_state`."""
    return None if state is None else ImageScores(**{name: value.numpy() for name, value in state.items()})

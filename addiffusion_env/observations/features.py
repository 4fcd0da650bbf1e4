"""Observation keys: for each its length and how it is made from a :class:`Frame`. Everything lies in [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from addiffusion_env.observations.frame import LOG_SNR_RANGE, Frame

TIMESTEP_DIM = 128
QUALITY = (
    "clip_score",
    "clip_change",
    "preference",
    "preference_change",
    "dino_similarity",
    "x0_change",
    "budget_spent",
    "refinements_used",
)
"""The eight quality numbers, in order."""


@dataclass(frozen=True)
class Widths:
    """What the lengths of features depend on.

    Attributes:
        clip: width of a CLIP embedding.
        features: width of the denoiser's own features; 0 where there are none.
    """

    clip: int
    features: int = 0


@dataclass(frozen=True)
class Feature:
    """One key of the observation.

    Attributes:
        dim: length.
        make: (B, dim) float32 in [low, 1] from a frame.
        low: lower bound; the upper is 1.
        looks: whether it shows what scorers said of a preview, which must then be decoded.
    """

    dim: Callable[[Widths], int]
    make: Callable[[Frame], np.ndarray]
    low: float = -1.0
    looks: bool = False


def clip(frame: Frame) -> np.ndarray:
    """Image and text embedding, unit length each, side by side: (B, 2 D)."""
    return np.concatenate([frame.clip_image, frame.clip_text], axis=1)


def timestep(frame: Frame) -> np.ndarray:
    """128 sinusoids of the log-SNR position: (B, 128).

    The position u in [0, 1] is linear in log-SNR; frequencies rise geometrically from half a turn over the whole way
    to 32 turns, so that near steps of a 50-step schedule differ and far ones do not alias.
    """
    low, high = LOG_SNR_RANGE
    position = (np.clip(frame.log_snr, low, high) - low) / (high - low)
    frequencies = np.pi * np.geomspace(1, 64, TIMESTEP_DIM // 2)
    angles = position[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def quality(frame: Frame) -> np.ndarray:
    """The eight numbers of :data:`QUALITY`: (B, 8). Scores in standard deviations are squashed by tanh(x / 2)."""
    return np.stack(
        [
            frame.clip_score,
            frame.clip_score - frame.clip_before,
            np.tanh(frame.preference / 2),
            np.tanh((frame.preference - frame.preference_before) / 2),
            frame.dino_similarity,
            frame.x0_change,
            frame.budget,
            frame.refinements,
        ],
        axis=1,
    )


def price(frame: Frame) -> np.ndarray:
    """The episode's NFE price over the highest that is drawn: (B, 1) in [0, 1]."""
    return frame.price[:, None]


def tries(frame: Frame) -> np.ndarray:
    """How much the best finished picture so far is liked, squashed by tanh(x / 2), and whether there is one: (B, 2)."""
    return np.stack([np.tanh(frame.best_liking / 2), frame.has_best], axis=1)


def belief(frame: Frame) -> np.ndarray:
    """How far the picture, and the best of earlier tries, is believed to be right: (B, 4).

    With a belief as liking, its log-odds x of both as 2 / (1 + exp(-x)) - 1, which tells chances apart in the middle,
    and as tanh(x / 8), which tells .98 from .999; 0 without a picture.
    """
    odds = np.stack([frame.liking, frame.best_liking], axis=1)
    return np.concatenate([np.tanh(odds / 2), np.tanh(odds / 8)], axis=1)


def checked(frame: Frame) -> np.ndarray:
    """The same of finished pictures alone, which are looked at anyhow (``check_finished``): no preview is: (B, 4)."""
    return belief(replace(frame, liking=frame.liking * frame.finished))


def phrases(frame: Frame) -> np.ndarray:
    """What the last refinement's phrase maps said: (B, 3) in [0, 1]."""
    return frame.evidence


def features(frame: Frame) -> np.ndarray:
    """The denoiser's own view: (B, F), each row standardised over its channels and squashed by tanh(x / 2).

    By itself alone: no running statistics, so that a lane is seen alike in every batch and every process.
    """
    spread = frame.features.std(axis=1, keepdims=True)
    return np.tanh((frame.features - frame.features.mean(axis=1, keepdims=True)) / (2 * np.maximum(spread, 1e-6)))


def spent(frame: Frame) -> np.ndarray:
    """Share of the budget spent, refinements used, relative change of x0: (B, 3) in [0, 1], known without a look."""
    return np.stack([frame.budget, frame.refinements, frame.x0_change], axis=1)


def prompt(frame: Frame) -> np.ndarray:
    """CLIP embedding of the prompt, unit length: (B, D); encoded once a prompt."""
    return frame.clip_text


FEATURES: dict[str, Feature] = {
    "clip": Feature(lambda widths: 2 * widths.clip, clip, looks=True),
    "timestep": Feature(lambda widths: TIMESTEP_DIM, timestep),
    "quality": Feature(lambda widths: len(QUALITY), quality, looks=True),
    "price": Feature(lambda widths: 1, price, low=0.0),
    "tries": Feature(lambda widths: 2, tries),
    "belief": Feature(lambda widths: 4, belief, looks=True),
    "checked": Feature(lambda widths: 4, checked),
    "phrases": Feature(lambda widths: 3, phrases, low=0.0),
    "features": Feature(lambda widths: widths.features, features),
    "spent": Feature(lambda widths: 3, spent, low=0.0),
    "prompt": Feature(lambda widths: widths.clip, prompt),
}
"""Key -> feature. A new observation is one entry."""

STANDARD_KEYS = ("clip", "timestep", "quality")

OBSERVATION_PRESETS = {
    "standard": STANDARD_KEYS,
    "denoiser": ("features", "prompt", "timestep", "spent"),
    "denoiser_checked": ("features", "prompt", "timestep", "spent", "tries", "checked"),
}
"""Name -> keys. ``denoiser`` needs no preview and no scorer: what the denoiser computes anyway, and the prompt.
``denoiser_checked`` adds what the scorers said of finished pictures, where the process looks at those."""


def sees_previews(keys: Sequence[str]) -> bool:
    """Whether an observation of these keys needs a preview to be decoded and scored at each decision.

    >>> sees_previews(["timestep", "quality"]), sees_previews(OBSERVATION_PRESETS["denoiser"])
    (True, False)
    """
    return any(FEATURES[key].looks for key in keys)

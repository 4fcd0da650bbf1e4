"""Frames, the keys of an observation that are made of them, and an observer that holds their space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from gymnasium import spaces

from addiffusion_env.errors import CapabilityError, ConfigError, ContractError, NumericsError
from addiffusion_env.observations import STANDARD_KEYS, UTILITY, features_of
from addiffusion_env.scorers.image_scores import ImageScoresBatch

TIMESTEP_DIM = 128
FREQUENCIES = np.pi * np.geomspace(1, 64, TIMESTEP_DIM // 2)
"""Of the key ``timestep``."""
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
"""The eight numbers of the key ``quality``, in order."""


@dataclass(frozen=True)
class Frame:
    """The decision states of ``B`` lanes. Before a lane's first clean prediction its image features are 0.

    Attributes:
        clip_image: (B, D) unit CLIP embedding of the preview.
        clip_text: (B, D) unit CLIP embedding of the prompt.
        clip_score: (B,) their cosine similarity.
        clip_before: (B,) the CLIP score at the previous decision.
        preference: (B,) preference score of the preview, in standard deviations.
        preference_before: (B,) the preference score at the previous decision.
        dino_similarity: (B,) cosine similarity of the DINO embeddings of this and the previous decision's preview; 0
            without one.
        x0_change: (B,) relative change of x0 at the last evaluation.
        log_snr: (B,) half log-SNR at the current noise level, clipped to :data:`LOG_SNR_RANGE`.
        budget: (B,) NFE spent as a fraction of the full schedule with every refinement, in [0, 1].
        refinements: (B,) refinements taken as a fraction of their limit, in [0, 1].
        cost_per_nfe: (B,) the cost per NFE as a fraction of its upper bound, in [0, 1].
        utility: (B,) utility of the preview or finished image (:class:`scorers.utility.Utility`); 0 without one.
        best_utility: (B,) utility of the best finished image of earlier attempts; 0 without one.
        has_best: (B,) whether there is one, 0 or 1.
        evidence: (B, 3) summary of the phrase maps (:func:`engine.regions.evidence_of`), in [0, 1]; 0 without any.
        features: (B, F) pooled output of the denoiser's middle block at the last evaluation, unnormalised; 0 before
            the first evaluation, and F is 0 if they are not recorded.
        prior: (B,) utility to expect of an image of the prompt before it is drawn; 0 without a calibrator.
        finished: (B,) whether the scored image is a finished one that can be accepted or replaced, 0 or 1.
    """

    clip_image: np.ndarray
    clip_text: np.ndarray
    clip_score: np.ndarray
    clip_before: np.ndarray
    preference: np.ndarray
    preference_before: np.ndarray
    dino_similarity: np.ndarray
    x0_change: np.ndarray
    log_snr: np.ndarray
    budget: np.ndarray
    refinements: np.ndarray
    cost_per_nfe: np.ndarray
    utility: np.ndarray
    best_utility: np.ndarray
    has_best: np.ndarray
    evidence: np.ndarray
    features: np.ndarray
    prior: np.ndarray
    finished: np.ndarray

    @classmethod
    def of(cls, now: ImageScoresBatch, before: ImageScoresBatch, **others: np.ndarray) -> Frame:
        """From the scores at this and the previous decision; ``others`` are the attributes not derived from scores."""
        return cls(
            clip_image=now.scores.clip_image,
            clip_score=now.score("clip_score"),
            clip_before=before.score("clip_score"),
            preference=now.score("preference"),
            preference_before=before.score("preference"),
            dino_similarity=now.similarity(before),
            **others,
        )


LOG_SNR_RANGE = (-4.0, 6.0)
"""Range of half log-SNR: it covers pure noise (-2.7 on SD 1.5) to the last step (3.5); finished lanes are clipped."""


@dataclass(frozen=True)
class Widths:
    """Dimensions on which the lengths of features depend.

    Attributes:
        clip: width of a CLIP embedding.
        features: width of the denoiser's features; 0 if there are none.
    """

    clip: int
    features: int = 0


class Feature:
    """Base class of observation keys; each is a subclass with a line in :data:`FEATURES`.

    Attributes:
        low: lower bound of its numbers; the upper bound is 1.
        needs_preview: whether it depends on the scores of previews, which must then be decoded and scored at each
            decision.
        needs_features: whether it needs the denoiser's features, which not every backbone provides.
        shows: the scorers it depends on, by their part in :class:`.ImageScorers`; :data:`UTILITY` stands for those of
            ``refine.utility``.
    """

    low: ClassVar[float] = -1.0
    needs_preview: ClassVar[bool] = False
    needs_features: ClassVar[bool] = False
    shows: ClassVar[tuple[str, ...]] = ()

    def width(self, widths: Widths) -> int:
        """Its length."""
        raise NotImplementedError

    def make(self, frame: Frame) -> np.ndarray:
        """Computes (B, width) numbers in [low, 1] from a frame of B lanes."""
        raise NotImplementedError


class Clip(Feature):
    """CLIP embeddings of preview and prompt, each of unit length, concatenated: (B, 2 D)."""

    needs_preview = True
    shows = ("clip",)

    def width(self, widths: Widths) -> int:
        """Two embeddings."""
        return 2 * widths.clip

    def make(self, frame: Frame) -> np.ndarray:
        """Image, then text."""
        return np.concatenate([frame.clip_image, frame.clip_text], axis=1)


class Timestep(Feature):
    """Sinusoidal embedding of the log-SNR: (B, 128).

    The position u in [0, 1] is linear in log-SNR; frequencies increase geometrically from half a period over the whole
    range to 32 periods, so that neighbouring steps of a 50-step schedule differ and distant ones do not alias.
    """

    def width(self, widths: Widths) -> int:
        """128."""
        return TIMESTEP_DIM

    def make(self, frame: Frame) -> np.ndarray:
        """Sines, then cosines."""
        low, high = LOG_SNR_RANGE
        position = (np.clip(frame.log_snr, low, high) - low) / (high - low)
        angles = position[:, None] * FREQUENCIES
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


class Quality(Feature):
    """The eight numbers of :data:`QUALITY`: (B, 8). Scores in standard deviations are squashed by tanh(x / 2)."""

    needs_preview = True
    shows = ("preference", "clip", "dino")

    def width(self, widths: Widths) -> int:
        """8."""
        return len(QUALITY)

    def make(self, frame: Frame) -> np.ndarray:
        """In the order of :data:`QUALITY`."""
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


class CostPerNfe(Feature):
    """The episode's cost per NFE as a fraction of its upper bound: (B, 1) in [0, 1]."""

    low = 0.0

    def width(self, widths: Widths) -> int:
        """1."""
        return 1

    def make(self, frame: Frame) -> np.ndarray:
        """The frame's value."""
        return frame.cost_per_nfe[:, None]


class Attempts(Feature):
    """Utility of the best finished image so far, squashed by tanh(x / 2), and whether there is one: (B, 2)."""

    shows = (UTILITY,)

    def width(self, widths: Widths) -> int:
        """2."""
        return 2

    def make(self, frame: Frame) -> np.ndarray:
        """Utility, then 0 or 1."""
        return np.stack([np.tanh(frame.best_utility / 2), frame.has_best], axis=1)


class Correctness(Feature):
    """Utility of the image and of the best of earlier attempts, on two scales: (B, 4).

    With a calibrator as utility these are the log-odds x of being correct, squashed as tanh(x / 2) = 2 sigmoid(x) - 1,
    which resolves medium probabilities, and as tanh(x / 8), which resolves .98 from .999; 0 without an image.
    """

    needs_preview = True
    shows = (UTILITY,)

    def width(self, widths: Widths) -> int:
        """4."""
        return 4

    def make(self, frame: Frame) -> np.ndarray:
        """Both as tanh(x / 2), then both as tanh(x / 8)."""
        odds = np.stack([frame.utility, frame.best_utility], axis=1)
        return np.concatenate([np.tanh(odds / 2), np.tanh(odds / 8)], axis=1)


class Checked(Correctness):
    """As :class:`Correctness`, for finished images only, whose scores need no preview (``check_finished``): (B, 4)."""

    needs_preview = False

    def make(self, frame: Frame) -> np.ndarray:
        """As :class:`Correctness`, with 0 for previews."""
        return super().make(replace(frame, utility=frame.utility * frame.finished))


class Prior(Feature):
    """Calibrated log-odds that an attempt of this prompt is correct, before it is drawn, as tanh(x / 2): (B, 1).

    They say how hard the prompt is; 0 without a calibrator.
    """

    def width(self, widths: Widths) -> int:
        """1."""
        return 1

    def make(self, frame: Frame) -> np.ndarray:
        """The frame's value, squashed."""
        return np.tanh(frame.prior / 2)[:, None]


class Phrases(Feature):
    """Summary of the last refinement's phrase maps: (B, 3) in [0, 1]."""

    low = 0.0

    def width(self, widths: Widths) -> int:
        """3."""
        return 3

    def make(self, frame: Frame) -> np.ndarray:
        """The frame's value."""
        return frame.evidence


class DenoiserFeatures(Feature):
    """Features of the denoiser's middle block: (B, F), each row standardised over its channels, then tanh(x / 2).

    There are no running statistics, so that a lane's observation is the same in every batch and every process.
    """

    needs_features = True

    def width(self, widths: Widths) -> int:
        """The width of the denoiser's features."""
        return widths.features

    def make(self, frame: Frame) -> np.ndarray:
        """Standardised, squashed."""
        spread = frame.features.std(axis=1, keepdims=True)
        return np.tanh((frame.features - frame.features.mean(axis=1, keepdims=True)) / (2 * np.maximum(spread, 1e-6)))


class Spent(Feature):
    """Fraction of the budget spent, of the refinements used, and relative change of x0: (B, 3) in [0, 1].

    None of them needs a preview.
    """

    low = 0.0

    def width(self, widths: Widths) -> int:
        """3."""
        return 3

    def make(self, frame: Frame) -> np.ndarray:
        """In that order."""
        return np.stack([frame.budget, frame.refinements, frame.x0_change], axis=1)


class PromptEmbedding(Feature):
    """CLIP embedding of the prompt, of unit length: (B, D). It is encoded once per prompt and needs no image."""

    def width(self, widths: Widths) -> int:
        """One embedding."""
        return widths.clip

    def make(self, frame: Frame) -> np.ndarray:
        """The frame's value."""
        return frame.clip_text


class Observer:
    """Computes Dict observations from frames.

    Args:
        clip_dim: width of the CLIP embedding (768 for ViT-L/14: the three standard keys then hold 1672 numbers).
        keys: the observation keys, in order.
        feature_dim: width of the denoiser's features; 0 if there are none.

    Attributes:
        keys: the observation keys.
        widths: key -> length.
        space: the observation space.

    Raises:
        UnknownNameError: for an unknown key.
        CapabilityError: for a key that needs the denoiser's features if there are none.
        ConfigError: for no key, or one that is named twice.
    """

    def __init__(self, clip_dim: int, keys: Sequence[str] = STANDARD_KEYS, feature_dim: int = 0) -> None:
        if not keys:
            raise ConfigError(f"observation_keys has no key, got {list(keys)}", "use standard, or [timestep]")
        if len(set(keys)) < len(keys):
            raise ConfigError(f"observation_keys names a key twice, got {list(keys)}", "name each once")
        self._features: dict[str, Feature] = features_of(keys)
        requiring = [key for key, feature in self._features.items() if feature.needs_features]
        if requiring and not feature_dim:
            raise CapabilityError(
                f"the observation key {requiring[0]!r} needs the features of the denoiser's middle block, and this "
                "backbone or table has none",
                f"leave {requiring[0]!r} out of observation_keys, or record the table with features=True",
            )
        self.keys = tuple(keys)
        widths = Widths(clip_dim, feature_dim)
        self.widths = {key: feature.width(widths) for key, feature in self._features.items()}
        self.space = spaces.Dict(
            {
                key: spaces.Box(feature.low, 1.0, (self.widths[key],), np.float32)
                for key, feature in self._features.items()
            }
        )

    def observe(self, frame: Frame) -> dict[str, np.ndarray]:
        """(B, dim) float32 for each key, clipped to the space.

        Raises:
            ContractError: where a key makes an array of another shape.
            NumericsError: where it makes NaN.
        """
        return {key: self._part(key, np.asarray(feature.make(frame)), frame) for key, feature in self._features.items()}

    def _part(self, key: str, made: np.ndarray, frame: Frame) -> np.ndarray:
        wanted = (len(frame.budget), self.widths[key])
        if made.shape != wanted:
            raise ContractError(
                f"observation key {key!r} made an array of shape {made.shape}, expected {wanted}",
                "return one row of width() numbers for each lane",
            )
        part = np.clip(made, self._features[key].low, 1.0).astype(np.float32)
        if np.isnan(part).any():
            lane = int(np.flatnonzero(np.isnan(part).any(axis=1))[0])
            raise NumericsError(f"observation key {key!r} is NaN in lane {lane}", "return 0 where nothing is known")
        return part

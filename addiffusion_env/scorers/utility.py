"""The utility of a finished image: its preference, optionally with CLIP's score, or a calibrator's log-odds.

The meaning of a score depends on the prompt: a preference that is strong evidence for a correct "a photo of a dog" is
weak evidence for "a bus left of a bear", which fails more often. The scores of finished images of training prompts form
two groups, correct and incorrect. A mixture of two linear regressions on the prompt's CLIP embedding, its
mixing weight a logistic regression on the same (a mixture of experts: Jordan and Jacobs 1994, Neural Computation 6),
identifies both groups by expectation maximisation and gives every image its posterior odds.

Fitted by ``python -m addiffusion_env.tabular.fit_calibrator TABLE OUT`` on a table of attempts, from scores alone.

Neither score alone separates attempts well. On 320 emoji prompts, five attempts each, preference alone predicts
which finished image is correct with AUC .88, CLIP alone .67, both together .92 (judged by the detector, which is used
for nothing else): preference captures relations, CLIP classes and counts. A :class:`.calibrator.Calibrator` also
knows that the same scores mean more on an easy prompt than on a hard one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from addiffusion_env.backbones.identity import described
from addiffusion_env.errors import ConfigError, WeightsError, unknown
from addiffusion_env.files import stamp_of, whole_file
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers.clip import ClipScorer
from addiffusion_env.scorers.image_scores import ImageScores
from addiffusion_env.settings import Gt, Settings

CALIBRATORS = Path(__file__).parent / "calibrators"
"""Fitted calibrators that ship with the package: ``<name>.safetensors``."""

MOST = 12.0
"""Log-odds are clipped to this absolute value, beyond which a mixture is not informative."""


@dataclass(frozen=True, eq=False)
class Calibrator:
    """A fitted mixture; ``D`` is the width of the prompt's CLIP embedding, ``K`` the number of kept directions.

    Attributes:
        centre: (D,) mean prompt embedding.
        basis: (D, K) directions of the prompts' embeddings, scaled to unit variance.
        prior: (K + 1,) logistic regression of correctness without scores; the first entry is the constant.
        means: (2, K + 1, 2) regressions of (preference, CLIP score) of correct and of incorrect images.
        precisions: (2, 2, 2) inverse covariances around them.
    """

    centre: np.ndarray
    basis: np.ndarray
    prior: np.ndarray
    means: np.ndarray
    precisions: np.ndarray

    not_identity = ("_spreads",)

    @classmethod
    def fit(
        cls,
        preference: np.ndarray,
        clip_score: np.ndarray,
        clip_text: np.ndarray,
        directions: int = 64,
        ridge: float = 150.0,
        rounds: int = 60,
        absolute: bool = False,
    ) -> Calibrator:
        """Fits by expectation maximisation, initialised by a split at the median of the scores.

        Args:
            preference: (P, T) scores of T finished images of each of P prompts.
            clip_score: (P, T) scores.
            clip_text: (P, D) CLIP embeddings of the prompts.
            directions: K; on 512 emoji prompts the likelihood of held-out prompts (four folds) is best at 64, with a
                ridge of 150, among 0 to 127 and 1 to 150.
            ridge: strength of the ridge penalty, in numbers of images.
            rounds: number of EM iterations.
            absolute: whether the scores mean the same for every prompt, as those of a scorer trained on one absolute
                scale do; then only the probability before the scores depends on the prompt.

        Raises:
            ConfigError: for fewer prompts than directions.
        """
        if len(preference) <= directions:
            raise ConfigError(
                f"a calibrator of {directions} directions needs more prompts than that, got {len(preference)}",
                "record more images, or lower directions",
            )
        centre = clip_text.mean(0).astype(np.float64)
        _, spread, rows = np.linalg.svd(clip_text - centre, full_matrices=False)
        basis = rows[:directions].T / (spread[:directions] / np.sqrt(len(clip_text)))
        scores = np.stack([preference, clip_score], axis=-1).reshape(-1, 2).astype(np.float64)
        inputs = np.repeat(_inputs(clip_text, centre, basis), preference.shape[1], axis=0)
        # Sum of both scores in standard deviations: images above its median start as correct.
        total = (scores / scores.std(0)).sum(1)
        right = 1 / (1 + np.exp(-4 * (total - np.median(total)) / total.std() - 1))
        pull = ridge * np.eye(inputs.shape[1])
        pull[0, 0] = 1e-3
        prior = np.zeros(inputs.shape[1])
        constant = inputs * (np.arange(inputs.shape[1]) == 0)
        for _ in range(rounds):
            means, precisions = _regressions(constant if absolute else inputs, scores, right, pull)
            prior = _logistic(inputs, right, prior, pull)
            found = cls(centre, basis, prior, means, precisions)
            right = 1 / (1 + np.exp(-found._odds(inputs, scores)))
        return found

    def __call__(self, preference: np.ndarray, clip_score: np.ndarray, clip_text: np.ndarray) -> np.ndarray:
        """Log-odds of correctness, in [-12, 12], with the scores' shape.

        Args:
            preference: (B, ...) standard deviations.
            clip_score: the same shape.
            clip_text: (B, D) embeddings of the prompts.
        """
        shape = np.shape(preference)
        each = int(np.prod(shape[1:], dtype=int))
        inputs = np.repeat(_inputs(clip_text, self.centre, self.basis), each, axis=0)
        scores = np.stack([preference, clip_score], axis=-1).reshape(-1, 2).astype(np.float64)
        return self._odds(inputs, scores).reshape(shape)

    @cached_property
    def _spreads(self) -> np.ndarray:
        """(2,) logarithms of the precisions' determinants."""
        return np.linalg.slogdet(self.precisions)[1]

    def _odds(self, inputs: np.ndarray, scores: np.ndarray) -> np.ndarray:
        fits = []
        for mean, precision, spread in zip(self.means, self.precisions, self._spreads, strict=True):
            error = scores - inputs @ mean
            fits.append((spread - np.einsum("ni,ij,nj->n", error, precision, error)) / 2)
        return np.clip(inputs @ self.prior + fits[0] - fits[1], -MOST, MOST)

    def before(self, clip_text: np.ndarray) -> np.ndarray:
        """(P,) log-odds, in [-12, 12], that an attempt of each prompt is correct, before its image is known.

        Args:
            clip_text: (P, D) embeddings of the prompts.
        """
        return np.clip(_inputs(clip_text, self.centre, self.basis) @ self.prior, -MOST, MOST)

    def save(self, path: Path) -> None:
        """Writes a safetensors file atomically."""
        from safetensors.numpy import save

        with whole_file(path) as file:
            file.write(save({item.name: np.ascontiguousarray(getattr(self, item.name)) for item in fields(self)}))

    @classmethod
    def load(cls, path: Path) -> Calibrator:
        """Reads a file of :meth:`save`; executes no code from it.

        Raises:
            WeightsError: when it is missing, damaged or of another kind.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return cls(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise WeightsError(
                f"no calibrator in {path}: {error}", "fit one: addiffusion_env.tabular.fit_calibrator"
            ) from error


def calibrator_of(name: str) -> Calibrator:
    """A shipped calibrator by name, or one from a ``.safetensors`` file; reloaded when the file has changed.

    Raises:
        UnknownNameError: for a name that is not shipped.
        WeightsError: for a file without a calibrator.
    """
    path = Path(name) if name.endswith(".safetensors") else CALIBRATORS / f"{name}.safetensors"
    if not name.endswith(".safetensors") and not path.is_file():
        raise unknown("calibrator", name, [shipped.stem for shipped in CALIBRATORS.glob("*.safetensors")])
    return _read(path, stamp_of(path))


@lru_cache(maxsize=8)
def _read(path: Path, stamp: tuple) -> Calibrator:
    del stamp  # only part of the cache key
    return Calibrator.load(path)


def _inputs(clip_text: np.ndarray, centre: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """(P, K + 1) a constant and the prompts' coordinates."""
    return np.c_[np.ones(len(clip_text)), (clip_text - centre) @ basis]


def _regressions(
    inputs: np.ndarray, scores: np.ndarray, right: np.ndarray, pull: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted ridge regression of each group and the inverse covariance of its residuals."""
    means, precisions = [], []
    for weight in (right, 1 - right):
        weighted = inputs.T * weight
        mean = np.linalg.solve(weighted @ inputs + pull, weighted @ scores)
        error = scores - inputs @ mean
        covariance = (error.T * weight) @ error / max(weight.sum(), 1e-9)
        floor = 1e-3 * np.diag(scores.var(0))  # a group of one image has no variance
        means.append(mean)
        precisions.append(np.linalg.inv(covariance + floor))
    return np.stack(means), np.stack(precisions)


def _logistic(inputs: np.ndarray, right: np.ndarray, start: np.ndarray, pull: np.ndarray, steps: int = 5) -> np.ndarray:
    """Ridge logistic regression of the responsibilities, a few Newton steps from the previous solution."""
    found = start.copy()
    for _ in range(steps):
        share = 1 / (1 + np.exp(-inputs @ found))
        slope = (inputs.T * (share * (1 - share))) @ inputs + pull
        found += np.linalg.solve(slope, inputs.T @ (right - share) - pull @ found)
    return found


@dataclass(frozen=True)
class Utility(Settings):
    """``preference + clip_weight * (clip_score - clip_centre) / clip_scale``, in standard deviations of preference.

    With a calibrator, the calibrator's log-odds of the image being correct instead.

    Attributes:
        clip_weight: 0 is preference alone.
        clip_centre: CLIP score that counts as 0: the mean over finished images of training prompts.
        clip_scale: its standard deviation there; above 0.
        calibrator: name or file of a :class:`addiffusion_env.scorers.utility.Calibrator`; ``None`` for the weighted
            sum.
    """

    section: ClassVar[str] = "utility"

    clip_weight: float = 0.0
    clip_centre: float = 0.0
    clip_scale: Annotated[float, Gt(0)] = 1.0
    calibrator: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibrator is not None:
            calibrator_of(self.calibrator)  # raises for an unknown name

    @property
    def parts(self) -> tuple[str, ...]:
        """The scorers that it uses, by their part in :class:`.ImageScorers`."""
        return ("preference", "clip") if self.calibrator is not None or self.clip_weight else ("preference",)

    @property
    def identity(self) -> dict[str, Any]:
        """The settings and the content of their calibrator."""
        calibrator = None if self.calibrator is None else described(calibrator_of(self.calibrator))
        return {**{item.name: getattr(self, item.name) for item in fields(self)}, "calibrator": calibrator}

    def __call__(self, preference: np.ndarray, clip_score: np.ndarray, clip_text: np.ndarray) -> np.ndarray:
        """(B, ...) scores of images of B prompts, (B, D) embeddings of the prompts -> (B, ...) utility."""
        if self.calibrator is not None:
            return calibrator_of(self.calibrator)(preference, clip_score, clip_text)
        if self.clip_weight == 0:
            return preference
        return preference + self.clip_weight * (clip_score - self.clip_centre) / self.clip_scale

    def before(self, clip_text: np.ndarray) -> np.ndarray:
        """(B, D) embeddings of prompts -> (B,) utility to expect before an image is drawn; 0 uncalibrated."""
        return np.zeros(len(clip_text)) if self.calibrator is None else calibrator_of(self.calibrator).before(clip_text)

    def at(self, scores: ImageScores) -> float:
        """Utility of one image."""
        return float(self(scores.preference, scores.clip_score, scores.clip_text)[0])


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

    def liked(self, utility: Utility) -> np.ndarray:
        """(B,) float64 utility of each image; 0 where there are no scores."""
        if not self.known.any():
            return np.zeros(len(self.known))
        value = utility(self.scores.preference, self.scores.clip_score, self.scores.clip_text)
        return np.where(self.known, value, 0.0)

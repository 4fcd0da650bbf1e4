"""The utility of a finished image: its preference, optionally with CLIP's score, or a calibrator's log-odds.

The meaning of a score depends on the prompt: a preference that is strong evidence for a correct "a photo of a dog" is
weak evidence for "a bus left of a bear", which fails more often. The scores of finished images of training prompts form
two groups, correct and incorrect. A mixture of two linear regressions on the prompt's CLIP embedding, its
mixing weight a logistic regression on the same (a mixture of experts: Jordan and Jacobs 1994, Neural Computation 6),
identifies both groups by expectation maximisation and gives every image its posterior odds.

Fitted by ``python -m addiffusion_env.tabular.fit_calibrator TABLE OUT`` on a table of attempts, from scores alone.

Neither score alone separates attempts well. On 320 emoji prompts, five attempts each, preference alone predicts
which finished image is correct with AUC .88, CLIP alone .67, both together .92 (judged by the detector, which is used
for nothing else): preference captures relations, CLIP classes and counts. A :class:`Calibrator` also
knows that the same scores mean more on an easy prompt than on a hard one.

A score of a preview means something else again: blurred images score low. So a calibrator may hold, for each step at
which previews are scored, a regression of what it says of the finished image of the same attempt, which needs no
verdict either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from addiffusion_env.errors import ConfigError, WeightsError, unknown
from addiffusion_env.files import stamp_of, whole_file
from addiffusion_env.settings import Gt, Settings

CALIBRATORS = Path(__file__).parent / "calibrators"
"""Fitted calibrators that ship with the package: ``<name>.safetensors``."""

MOST = 12.0
"""Log-odds are clipped to this absolute value, beyond which a mixture is not informative."""


@dataclass(frozen=True, eq=False)
class Calibrator:
    """A fitted mixture; ``D`` is the width of the prompt's CLIP embedding, ``K`` the number of kept directions.

    It knows its places: finished images, whether of a whole schedule or of an early exit, and the previews of ``S``
    steps of the schedule. One without any step, as in files of earlier versions, reads previews as finished images.

    Attributes:
        centre: (D,) mean prompt embedding.
        basis: (D, K) directions of the prompts' embeddings, scaled to unit variance.
        prior: (K + 1,) logistic regression of correctness without scores; the first entry is the constant.
        means: (2, K + 1, 2) regressions of (preference, CLIP score) of correct and of incorrect images.
        precisions: (2, 2, 2) inverse covariances around them.
        steps: (S,) int, the steps of the schedule whose previews it knows.
        previews: (S, 5) for each of them a linear model of the log-odds at the end: a constant, then the weights of
            preference, CLIP score, log-odds before the image, and log-odds of the preview as a finished image.
    """

    centre: np.ndarray
    basis: np.ndarray
    prior: np.ndarray
    means: np.ndarray
    precisions: np.ndarray
    steps: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    previews: np.ndarray = field(default_factory=lambda: np.zeros((0, 5)))

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
        from addiffusion_env.scorers.regressions import group_regressions, logistic

        if len(preference) <= directions:
            raise ConfigError(
                f"a calibrator of {directions} directions needs more prompts than that, got {len(preference)}",
                "record more images, or lower directions",
            )
        centre = clip_text.mean(0).astype(np.float64)
        _, spread, rows = np.linalg.svd(clip_text - centre, full_matrices=False)
        basis = rows[:directions].T / (spread[:directions] / np.sqrt(len(clip_text)))
        scores = np.stack([preference, clip_score], axis=-1).reshape(-1, 2).astype(np.float64)
        inputs = np.repeat(coordinates(clip_text, centre, basis), preference.shape[1], axis=0)
        # Sum of both scores in standard deviations: images above its median start as correct.
        total = (scores / scores.std(0)).sum(1)
        right = 1 / (1 + np.exp(-4 * (total - np.median(total)) / total.std() - 1))
        pull = ridge * np.eye(inputs.shape[1])
        pull[0, 0] = 1e-3
        prior = np.zeros(inputs.shape[1])
        constant = inputs * (np.arange(inputs.shape[1]) == 0)
        for _ in range(rounds):
            means, precisions = group_regressions(constant if absolute else inputs, scores, right, pull)
            prior = logistic(inputs, right, prior, pull)
            found = cls(centre, basis, prior, means, precisions)
            right = 1 / (1 + np.exp(-found._odds(inputs, scores)))
        return found

    def with_previews(
        self,
        steps: Sequence[int],
        preference: np.ndarray,
        clip_score: np.ndarray,
        clip_text: np.ndarray,
        finished: np.ndarray,
    ) -> Calibrator:
        """A copy that knows the previews of some steps: a logistic regression of ``finished`` for each of them.

        Args:
            steps: S steps of the schedule.
            preference: (P, T, S) scores of the previews of T attempts of each of P prompts.
            clip_score: (P, T, S) scores.
            clip_text: (P, D) CLIP embeddings of the prompts.
            finished: (P, T) log-odds of the finished images of the same attempts.
        """
        from addiffusion_env.scorers.regressions import standardised_logistic

        alone = replace(self, steps=self.steps[:0], previews=self.previews[:0])
        inputs = alone._preview_inputs(preference, clip_score, clip_text)
        # Probabilities as targets of the cross-entropy: it is least where they are the expected ones.
        target = 1 / (1 + np.exp(-finished.reshape(-1).astype(np.float64)))
        found = [
            standardised_logistic(inputs[:, :, at].reshape(-1, inputs.shape[-1]), target) for at in range(len(steps))
        ]
        return replace(self, steps=np.array(steps, np.int64), previews=np.reshape(found, (len(steps), -1)))

    @property
    def identity(self) -> dict[str, Any]:
        """Its class and content; that of one without previews is the same as before there were any."""
        held = {item.name: getattr(self, item.name) for item in fields(self)}
        without = () if len(self.steps) else ("steps", "previews")
        kept = {name: value for name, value in held.items() if name not in without}
        return {"class": f"{type(self).__module__}.{type(self).__name__}", **kept}

    def __call__(
        self, preference: np.ndarray, clip_score: np.ndarray, clip_text: np.ndarray, step: np.ndarray | int = 0
    ) -> np.ndarray:
        """Log-odds of correctness, in [-12, 12], with the scores' shape: of a preview, those of its finished image.

        Args:
            preference: (B, ...) standard deviations.
            clip_score: the same shape.
            clip_text: (B, D) embeddings of the prompts.
            step: the same shape, or one that broadcasts to it: 0 for finished images, for previews the steps of the
                schedule that are done. Read only by a calibrator that knows previews.

        Raises:
            ConfigError: for a step whose previews it does not know, if it knows those of others.
        """
        shape = np.shape(preference)
        if not len(self.steps):
            return self._finished(preference, clip_score, clip_text)
        at = np.broadcast_to(step, shape)
        self.check_steps(np.unique(at[at != 0]).tolist())
        inputs = self._preview_inputs(preference, clip_score, clip_text)
        found = inputs[..., -1]  # as finished images
        for known, weights in zip(self.steps, self.previews, strict=True):
            found = np.where(at == known, (inputs * weights).sum(-1), found)
        return np.clip(found, -MOST, MOST)

    def check_steps(self, steps: Sequence[int]) -> None:
        """Checks that it can judge the previews of these steps of the schedule.

        Raises:
            ConfigError: for a step that it was not fitted to, if it was fitted to others.
        """
        unknown_steps = sorted(set(steps) - set(self.steps.tolist()))
        if len(self.steps) and unknown_steps:
            raise ConfigError(
                f"a calibrator was fitted to previews of the steps {self.steps.tolist()} and to finished images, and "
                f"is asked about previews of {unknown_steps}",
                "decide at its steps, or fit one to attempts of this process: addiffusion_env.tabular.fit_calibrator",
            )

    def _finished(self, preference: np.ndarray, clip_score: np.ndarray, clip_text: np.ndarray) -> np.ndarray:
        """The log-odds of finished images."""
        shape = np.shape(preference)
        each = int(np.prod(shape[1:], dtype=int))
        inputs = np.repeat(coordinates(clip_text, self.centre, self.basis), each, axis=0)
        scores = np.stack([preference, clip_score], axis=-1).reshape(-1, 2).astype(np.float64)
        return self._odds(inputs, scores).reshape(shape)

    def _preview_inputs(self, preference: np.ndarray, clip_score: np.ndarray, clip_text: np.ndarray) -> np.ndarray:
        """(..., 5) the inputs of :attr:`previews`."""
        before = self.before(clip_text).reshape(-1, *[1] * (np.ndim(preference) - 1))
        parts = (1.0, preference, clip_score, before, self._finished(preference, clip_score, clip_text))
        return np.stack([np.broadcast_to(part, np.shape(preference)) for part in parts], axis=-1).astype(np.float64)

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
        return np.clip(coordinates(clip_text, self.centre, self.basis) @ self.prior, -MOST, MOST)

    def save(self, path: Path) -> None:
        """Writes a safetensors file atomically."""
        from safetensors.numpy import save

        with whole_file(path) as file:
            kept = {name: np.ascontiguousarray(value) for name, value in self.identity.items() if name != "class"}
            file.write(save(kept))

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


def coordinates(clip_text: np.ndarray, centre: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """(P, K + 1) a constant and the prompts' coordinates."""
    return np.c_[np.ones(len(clip_text)), (clip_text - centre) @ basis]


def calibrator_of(name: str) -> Calibrator:
    """A shipped calibrator by name, or one from a ``.safetensors`` file; reloaded when the file has changed.

    Raises:
        UnknownNameError: for a name that is not shipped.
        WeightsError: for a file without a calibrator.
    """
    if not name.endswith(".safetensors"):
        return _shipped(name)
    path = Path(name)
    return _read(path, stamp_of(path))


@cache
def _shipped(name: str) -> Calibrator:
    path = CALIBRATORS / f"{name}.safetensors"
    if not path.is_file():
        raise unknown("calibrator", name, [shipped.stem for shipped in CALIBRATORS.glob("*.safetensors")])
    return Calibrator.load(path)


@lru_cache(maxsize=8)
def _read(path: Path, stamp: tuple) -> Calibrator:
    del stamp  # only part of the cache key
    return Calibrator.load(path)


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
        from addiffusion_env.backbones.identity import described

        calibrator = None if self.calibrator is None else described(calibrator_of(self.calibrator))
        return {**{item.name: getattr(self, item.name) for item in fields(self)}, "calibrator": calibrator}

    def __call__(
        self, preference: np.ndarray, clip_score: np.ndarray, clip_text: np.ndarray, step: np.ndarray | int = 0
    ) -> np.ndarray:
        """(B, ...) scores of images of B prompts, (B, D) embeddings of the prompts -> (B, ...) utility.

        ``step`` is 0 for finished images and the step of the schedule for previews; see :meth:`Calibrator.__call__`.
        """
        if self.calibrator is not None:
            return calibrator_of(self.calibrator)(preference, clip_score, clip_text, step)
        if self.clip_weight == 0:
            return preference
        return preference + self.clip_weight * (clip_score - self.clip_centre) / self.clip_scale

    def before(self, clip_text: np.ndarray) -> np.ndarray:
        """(B, D) embeddings of prompts -> (B,) utility to expect before an image is drawn; 0 uncalibrated."""
        return np.zeros(len(clip_text)) if self.calibrator is None else calibrator_of(self.calibrator).before(clip_text)

    def check_steps(self, steps: Sequence[int]) -> None:
        """See :meth:`Calibrator.check_steps`."""
        if self.calibrator is not None:
            calibrator_of(self.calibrator).check_steps(steps)

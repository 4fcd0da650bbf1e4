"""Samplers that draw several whole images and keep the one that scores best: always n, or until one scores enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.episode import Episode, play
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import SEED_STRIDE, BaseSampler, EpisodeCoroutine, fixed_schedule, require_at_least


@dataclass(frozen=True)
class BestOf(BaseSampler):
    """``attempts`` images of ``steps`` evaluations each, all counted; the highest preference score is kept.

    Attributes:
        attempts: n.
        steps: evaluations per try.
    """

    attempts: int
    steps: int

    usage: ClassVar[str] = "best_of:ATTEMPTSxSTEPS"
    separator: ClassVar[str] = "x"
    example: ClassVar[tuple[str, str]] = ("emoji", "best_of:2x2")
    selects_by: ClassVar[Sequence[str]] = ("preference",)

    def __post_init__(self) -> None:
        require_at_least("best_of", "ATTEMPTS and STEPS", min(self.attempts, self.steps), 1)

    @property
    def attempt_counts(self) -> tuple[int, int]:  # type: ignore[override]
        """Always the full number."""
        return self.attempts, self.attempts

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """A fixed schedule."""
        return fixed_schedule(base, self.steps)

    def coroutine(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> EpisodeCoroutine:
        """All attempts, one after the other."""
        return attempted(backbone, process, prompt, seed, self.attempts, float("inf"))


@dataclass(frozen=True)
class ThresholdResample(BaseSampler):
    """Draws another image from new noise while the preference is below the threshold. Keeps the best.

    The strongest comparator known on the emoji world. Its threshold is to be tuned on training prompts.

    Attributes:
        threshold: in standard deviations of preference.
        steps: evaluations per try.
        attempts: maximum number of attempts.
    """

    threshold: float
    steps: int = 8
    attempts: int = 4

    usage: ClassVar[str] = "threshold_resample:THRESHOLD[,STEPS[,ATTEMPTS]]"
    example: ClassVar[tuple[str, str]] = ("emoji", "threshold_resample:1.5,2,2")
    selects_by: ClassVar[Sequence[str]] = ("preference",)

    def __post_init__(self) -> None:
        require_at_least("threshold_resample", "STEPS and ATTEMPTS", min(self.steps, self.attempts), 1)
        require_at_least("threshold_resample", "THRESHOLD", self.threshold, float("-inf"))  # refuses NaN

    @property
    def attempt_counts(self) -> tuple[int, int]:  # type: ignore[override]
        """A single one where the first score reaches the threshold."""
        return 1, self.attempts

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """A fixed schedule."""
        return fixed_schedule(base, self.steps)

    def coroutine(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> EpisodeCoroutine:
        """Attempts until one reaches the threshold or none are left."""
        return attempted(backbone, process, prompt, seed, self.attempts, self.threshold)


def attempted(
    backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int, attempts: int, threshold: float
) -> EpisodeCoroutine:
    """Draws up to ``attempts`` images, until the preference of one reaches ``threshold``.

    Returns:
        The episode of the highest preference (the first of ties), with the summed cost of all.
    """
    drawn: list[Episode] = []
    while not drawn or (len(drawn) < attempts and _preference(drawn[-1]) < threshold):
        episode = yield from play(backbone, process, prompt, seed + SEED_STRIDE * len(drawn), looks=False)
        drawn.append(episode)
    best = max(drawn, key=_preference)
    nfe, calls = (sum(getattr(episode.lane, name) for episode in drawn) for name in ("nfe", "calls"))
    return replace(best, lane=replace(best.lane, nfe=nfe, calls=calls))


def _preference(episode: Episode) -> float:
    return float(episode.image.scores.preference[0])

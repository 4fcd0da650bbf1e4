"""Threshold-resample: score the finished image and draw a new one while the score is below a threshold. No learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.episode import Episode, play
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.attempts import best_try, preference_of
from addiffusion_env.samplers.base import (
    SEED_STRIDE,
    BaseSampler,
    EpisodeCoroutine,
    fixed_schedule,
    read_numbers,
    require_at_least,
)


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

    @classmethod
    def parse(cls, text: str) -> ThresholdResample:
        """``"0.8"``, ``"0.8,6"`` or ``"0.8,6,3"``."""
        return cls(*read_numbers(cls, text, (float, int, int), ",", optional=2))

    @property
    def name(self) -> str:
        """``threshold_resample:0.8``, followed by steps and attempts where they are not 8 and 4."""
        if (self.steps, self.attempts) == (8, 4):
            return f"threshold_resample:{self.threshold:g}"
        return f"threshold_resample:{self.threshold:g},{self.steps},{self.attempts}"

    @property
    def attempt_counts(self) -> tuple[int, int]:  # type: ignore[override]
        """A single one where the first score reaches the threshold."""
        return 1, self.attempts

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """A fixed schedule."""
        return fixed_schedule(base, self.steps)

    def coroutine(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> EpisodeCoroutine:
        """Attempts until one reaches the threshold or none are left."""
        attempts: list[Episode] = []
        while not attempts or (len(attempts) < self.attempts and preference_of(attempts[-1]) < self.threshold):
            drawn = seed + SEED_STRIDE * len(attempts)
            attempts.append((yield from play(backbone, process, prompt, drawn, looks=False)))
        return best_try(attempts)

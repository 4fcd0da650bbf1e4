"""Threshold-retry: look at the finished picture once, start again while it is not liked. No learning in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.baselines.base import (
    SEED_STRIDE,
    BaseMethod,
    EpisodeProgram,
    fixed_schedule,
    read_numbers,
    require_at_least,
)
from addiffusion_env.baselines.tries import best_try, preference_of
from addiffusion_env.engine.episode import Episode, play
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.prompts import Prompt


@dataclass(frozen=True)
class ThresholdRetry(BaseMethod):
    """Makes a picture; while its preference is below the threshold, makes another from new noise. Keeps the best.

    The strongest comparator known on the emoji world. Its threshold is to be tuned on training prompts.

    Attributes:
        threshold: in standard deviations of preference.
        steps: evaluations a try.
        tries: at most so many.
    """

    threshold: float
    steps: int = 8
    tries: int = 4

    usage: ClassVar[str] = "threshold_retry:THRESHOLD[,STEPS[,TRIES]]"
    example: ClassVar[tuple[str, str]] = ("emoji", "threshold_retry:1.5,2,2")
    selects_by: ClassVar[Sequence[str]] = ("preference",)

    def __post_init__(self) -> None:
        require_at_least("threshold_retry", "STEPS and TRIES", min(self.steps, self.tries), 1)
        require_at_least("threshold_retry", "THRESHOLD", self.threshold, float("-inf"))  # refuses NaN

    @classmethod
    def parse(cls, text: str) -> ThresholdRetry:
        """``"0.8"``, ``"0.8,6"`` or ``"0.8,6,3"``."""
        return cls(*read_numbers(cls, text, (float, int, int), ",", optional=2))

    @property
    def name(self) -> str:
        """``threshold_retry:0.8``, and steps and tries where they are not 8 and 4."""
        if (self.steps, self.tries) == (8, 4):
            return f"threshold_retry:{self.threshold:g}"
        return f"threshold_retry:{self.threshold:g},{self.steps},{self.tries}"

    @property
    def attempts(self) -> tuple[int, int]:  # type: ignore[override]
        """One where the first is good enough."""
        return 1, self.tries

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """A fixed schedule."""
        return fixed_schedule(base, self.steps)

    def program(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> EpisodeProgram:
        """Tries until one is liked or none are left."""
        tries: list[Episode] = []
        while not tries or (len(tries) < self.tries and preference_of(tries[-1]) < self.threshold):
            drawn = seed + SEED_STRIDE * len(tries)
            tries.append((yield from play(backbone, process, prompt, drawn, looks=False)))
        return best_try(tries)

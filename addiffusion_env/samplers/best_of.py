"""Best of n: several images, of which the one with the highest preference score is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.episode import play
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.attempts import best_try
from addiffusion_env.samplers.base import (
    SEED_STRIDE,
    BaseSampler,
    EpisodeCoroutine,
    fixed_schedule,
    read_numbers,
    require_at_least,
)


@dataclass(frozen=True)
class BestOf(BaseSampler):
    """``attempts`` images of ``steps`` evaluations each, all counted.

    Attributes:
        attempts: n.
        steps: evaluations per try.
    """

    attempts: int
    steps: int

    usage: ClassVar[str] = "best_of:ATTEMPTSxSTEPS"
    example: ClassVar[tuple[str, str]] = ("emoji", "best_of:2x2")
    selects_by: ClassVar[Sequence[str]] = ("preference",)

    def __post_init__(self) -> None:
        require_at_least("best_of", "ATTEMPTS and STEPS", min(self.attempts, self.steps), 1)

    @classmethod
    def parse(cls, text: str) -> BestOf:
        """``"3x6"``."""
        return cls(*read_numbers(cls, text, (int, int), "x"))

    @property
    def name(self) -> str:
        """``best_of:3x6``."""
        return f"best_of:{self.attempts}x{self.steps}"

    @property
    def attempt_counts(self) -> tuple[int, int]:  # type: ignore[override]
        """Always the full number."""
        return self.attempts, self.attempts

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """A fixed schedule."""
        return fixed_schedule(base, self.steps)

    def coroutine(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> EpisodeCoroutine:
        """All attempts, one after the other."""
        attempts = []
        for index in range(self.attempts):
            drawn = seed + SEED_STRIDE * index
            attempts.append((yield from play(backbone, process, prompt, drawn, looks=False)))
        return best_try(attempts)

"""Stops every image at the same step: a policy that ignores prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from addiffusion_env.engine.lane import Decide
from addiffusion_env.engine.process import REFINE_PRESETS, Action, ProcessConfig
from addiffusion_env.errors import ConfigError
from addiffusion_env.samplers.base import BaseSampler, read_numbers, require_at_least


@dataclass(frozen=True)
class ConstantStop(BaseSampler):
    """Takes ``steps`` evaluations of the base schedule, then exits early as defined by the base process.

    Attributes:
        steps: evaluations before the stop; 0 exits at the first state.
    """

    steps: int

    usage: ClassVar[str] = "stop:STEPS"
    example: ClassVar[tuple[str, str]] = ("emoji", "stop:1")
    constant: ClassVar[bool] = True
    kind: ClassVar[str] = "fixed"  # type: ignore[assignment]

    def __post_init__(self) -> None:
        require_at_least("stop", "STEPS", self.steps, 0)

    @classmethod
    def parse(cls, text: str) -> ConstantStop:
        """``"6"``."""
        return cls(*read_numbers(cls, text, (int,), ","))

    @property
    def name(self) -> str:
        """``stop:6``."""
        return f"stop:{self.steps}"

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The base process, one decision per step.

        Raises:
            ConfigError: when the schedule ends before the stop.
        """
        if self.steps >= base.steps:
            raise ConfigError(
                f"{self.name} never stops on a schedule of {base.steps} steps",
                f"use stop:0 to stop:{base.steps - 1}, or fixed:{self.steps}",
            )
        return replace(base, decide_every=1, decide_at=None, check_finished=False, refine=REFINE_PRESETS["off"])

    def decide(self, requests: Sequence[Decide]) -> list[int]:
        """Stops once the steps are taken."""
        return [int(Action.STOP if request.lane.step >= self.steps else Action.CONTINUE) for request in requests]

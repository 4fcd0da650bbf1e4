"""Samplers that spend the same on every prompt: a fixed number of steps, a stop at a fixed step, the whole schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from addiffusion_env.backbones.solvers import check_solver
from addiffusion_env.engine.lane import Decide
from addiffusion_env.engine.process import Action, ProcessConfig
from addiffusion_env.errors import ConfigError
from addiffusion_env.samplers.base import BaseSampler, every_step, fixed_schedule, require_at_least


@dataclass(frozen=True)
class FixedSteps(BaseSampler):
    """A schedule of ``steps`` evaluations, always continued: the standard baseline.

    Attributes:
        steps: evaluations per image.
        spacing: timestep spacing; ``None`` is trailing, or the pipeline's own where the process keeps them.
        solver: a solver's name, or ``None`` for that of the base process.

    >>> FixedSteps.parse("10,trailing,dpmpp_2m").name, FixedSteps(50).name
    ('fixed:10,trailing,dpmpp_2m', 'fixed:50')
    """

    steps: int
    spacing: str | None = None
    solver: str | None = None

    usage: ClassVar[str] = "fixed:STEPS[,SPACING[,SOLVER]]"
    example: ClassVar[tuple[str, str]] = ("emoji", "fixed:2,trailing,unipc")
    constant: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least("fixed", "STEPS", self.steps, 1)
        if self.solver is not None:
            check_solver(self.solver)

    @property
    def schedule_steps(self) -> int:  # type: ignore[override]
        """Its steps."""
        return self.steps

    @property
    def curve(self) -> str:  # type: ignore[override]
        """Schedules of different lengths are points of one curve, on the default spacing and solver."""
        return "fixed" if (self.spacing, self.solver) == (None, None) else ""

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The guidance (and solver) of the base process on its own schedule."""
        made = fixed_schedule(base, self.steps, self.spacing)
        return made if self.solver is None else replace(made, solver=self.solver)


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

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The base process, one decision per step.

        Raises:
            ConfigError: when the schedule ends before the stop.
        """
        if self.steps >= base.length:
            raise ConfigError(
                f"{self.name} never stops on a schedule of {base.length} evaluations",
                f"use stop:0 to stop:{base.length - 1}, or fixed:{self.steps}",
            )
        return every_step(base)

    def decide(self, requests: Sequence[Decide]) -> list[int]:
        """Stops once the steps are taken."""
        return [int(Action.STOP if request.lane.step >= self.steps else Action.CONTINUE) for request in requests]


@dataclass(frozen=True)
class AlwaysContinue(BaseSampler):
    """Always continues, to the end of the process's schedule: what the pipeline does without a policy.

    With a diffusers pipeline this is the pipeline's default number of steps, scheduler and guidance: it gives the image
    that the pipeline itself generates from the same noise.
    """

    usage: ClassVar[str] = "continue"
    example: ClassVar[tuple[str, str]] = ("emoji", "continue")
    constant: ClassVar[bool] = True

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The base process without intermediate decisions and without refinement."""
        return every_step(base)

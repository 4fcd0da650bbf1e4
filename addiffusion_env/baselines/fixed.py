"""A fixed number of steps for every prompt: what everybody compares with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from addiffusion_env.backbones.solvers import SOLVERS
from addiffusion_env.baselines.base import BaseMethod, fixed_schedule, read_numbers, require_at_least
from addiffusion_env.engine.process import ProcessConfig


@dataclass(frozen=True)
class FixedSteps(BaseMethod):
    """A schedule of ``steps`` evaluations, always continued.

    Attributes:
        steps: evaluations a picture.
        spacing: timestep spacing.
        solver: a solver's name, or ``None`` for that of the base process.
    """

    steps: int
    spacing: str = "trailing"
    solver: str | None = None

    usage: ClassVar[str] = "fixed:STEPS[,SPACING[,SOLVER]]"
    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_at_least("fixed", "STEPS", self.steps, 1)
        if self.solver is not None:
            SOLVERS[self.solver]

    @classmethod
    def parse(cls, text: str) -> FixedSteps:
        """``"20"``, ``"50,leading"`` or ``"10,trailing,dpmpp_2m"``.

        >>> FixedSteps.parse("50,leading").name
        'fixed:50,leading'
        """
        return cls(*read_numbers(cls, text, (int, str, str), ",", optional=2))

    @property
    def name(self) -> str:
        """``fixed:20``, and what differs from trailing spacing and the base solver."""
        if self.solver is not None:
            return f"fixed:{self.steps},{self.spacing},{self.solver}"
        return f"fixed:{self.steps}" if self.spacing == "trailing" else f"fixed:{self.steps},{self.spacing}"

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The base process's guidance (and solver) on a schedule of its own."""
        return replace(fixed_schedule(base, self.steps, self.spacing), solver=self.solver or base.solver)

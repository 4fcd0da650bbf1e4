"""A fixed number of steps for every prompt: the standard baseline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from addiffusion_env.backbones.solvers import check_solver_name
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.samplers.base import BaseSampler, fixed_schedule, read_numbers, require_at_least


@dataclass(frozen=True)
class FixedSteps(BaseSampler):
    """A schedule of ``steps`` evaluations, always continued.

    Attributes:
        steps: evaluations per image.
        spacing: timestep spacing; ``None`` is trailing, or the pipeline's own where the process keeps them.
        solver: a solver's name, or ``None`` for that of the base process.
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
            check_solver_name(self.solver)

    @classmethod
    def parse(cls, text: str) -> FixedSteps:
        """``"20"``, ``"50,leading"`` or ``"10,trailing,dpmpp_2m"``.

        >>> FixedSteps.parse("50,leading").name
        'fixed:50,leading'
        """
        return cls(*read_numbers(cls, text, (int, str, str), ",", optional=2))

    @property
    def name(self) -> str:
        """``fixed:20``, followed by spacing and solver where they differ from trailing and the base solver."""
        parts = [str(self.steps), *(part for part in (self.spacing, self.solver) if part is not None)]
        return f"fixed:{','.join(parts)}"

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

"""The pipeline's own run: every step of the process's schedule, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from addiffusion_env.engine.process import REFINE_PRESETS, ProcessConfig
from addiffusion_env.errors import ConfigError
from addiffusion_env.samplers.base import BaseSampler


@dataclass(frozen=True)
class AlwaysContinue(BaseSampler):
    """Continues to the end of the process's own schedule.

    Around a diffusers pipeline that is the pipeline's own number of steps with its own scheduler and guidance: the
    image that the pipeline draws by itself from the same noise.
    """

    usage: ClassVar[str] = "continue"
    example: ClassVar[tuple[str, str]] = ("emoji", "continue")
    constant: ClassVar[bool] = True

    @classmethod
    def parse(cls, text: str) -> AlwaysContinue:
        """``""``: it takes no numbers.

        Raises:
            ConfigError: for any.
        """
        if text:
            raise ConfigError(f"sampler 'continue' takes no numbers, got {text!r}", "write continue, or fixed:20")
        return cls()

    @property
    def name(self) -> str:
        """``continue``."""
        return "continue"

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The base process without decisions on the way and without refinement."""
        return replace(base, decide_every=1, decide_at=None, check_finished=False, refine=REFINE_PRESETS["off"])

"""Takes every step of the process's schedule: what the pipeline does without a policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from addiffusion_env.engine.process import REFINE_PRESETS, ProcessConfig
from addiffusion_env.errors import ConfigError
from addiffusion_env.samplers.base import BaseSampler


@dataclass(frozen=True)
class AlwaysContinue(BaseSampler):
    """Always continues, to the end of the process's schedule.

    With a diffusers pipeline this is the pipeline's default number of steps, scheduler and guidance: it gives the image
    that the pipeline itself generates from the same noise.
    """

    usage: ClassVar[str] = "continue"
    example: ClassVar[tuple[str, str]] = ("emoji", "continue")
    constant: ClassVar[bool] = True

    @classmethod
    def parse(cls, text: str) -> AlwaysContinue:
        """``""``: it takes no arguments.

        Raises:
            ConfigError: for any argument.
        """
        if text:
            raise ConfigError(f"sampler 'continue' takes no numbers, got {text!r}", "write continue, or fixed:20")
        return cls()

    @property
    def name(self) -> str:
        """``continue``."""
        return "continue"

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The base process without intermediate decisions and without refinement."""
        return replace(base, decide_every=1, decide_at=None, check_finished=False, refine=REFINE_PRESETS["off"])

"""Any method without learning, guided only where the evaluation's own process is: ``interval:fixed:6``.

Guidance outside a middle range of noise levels costs a second network call and gains nothing, or harms
(Kynkaanniemi et al. 2024, arXiv:2404.07724). A policy whose process leaves it out must be compared with methods that
do so too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.baselines.base import BaseMethod, EpisodeProgram, Method
from addiffusion_env.baselines.traits import ScoresUsed, Traits
from addiffusion_env.engine.lane import Decide
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import ConfigError
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers.look import LookScorers


def _as_other(name: str) -> property:
    """A trait that is the other method's."""
    return property(lambda self: getattr(self.method, name, getattr(BaseMethod, name)), doc="As the other method.")


@dataclass(frozen=True)
class Interval(BaseMethod):
    """Another method under the process's guidance interval.

    Attributes:
        method: the other method.
    """

    method: Method

    usage: ClassVar[str] = "interval:METHOD:NUMBERS"
    example: ClassVar[tuple[str, str]] = ("emoji", "interval:threshold_retry:1.5,2,2")

    constant, bound, needs_preview, selects_by, attempts = map(  # type: ignore[assignment]
        _as_other, ("constant", "bound", "needs_preview", "selects_by", "attempts")
    )

    @property
    def scores_used(self) -> ScoresUsed:
        """As the other method."""
        return Traits.of(self.method).scores_used

    @property
    def curve(self) -> str:  # type: ignore[override]
        """The other method's under the interval."""
        return f"interval:{curve}" if (curve := Traits.of(self.method).curve) else ""

    def __post_init__(self) -> None:
        if isinstance(self.method, Interval):
            raise ConfigError("interval: a method was put under the interval twice", "write interval: once")
        if not getattr(self.method, "uses_engine", True):
            raise ConfigError(
                f"interval: {self.method.name} is a whole pipeline of diffusers, which guides every step or none",
                f"use {self.method.name} itself",
            )

    @classmethod
    def parse(cls, text: str) -> Interval:
        """``"fixed:6"``, ``"threshold_retry:0.4,6"``: any specification."""
        from addiffusion_env.baselines import make_method

        if text.count("interval:") > 1:  # refused before it is read: a thousand of them are too deep to read
            raise ConfigError(f"method {text[:60]!r} names interval again and again", "write interval: once")
        return cls(make_method(text))

    @property
    def name(self) -> str:
        """``interval:fixed:6``."""
        return f"interval:{self.method.name}"

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The other method's process with the guidance interval of ``base``."""
        return replace(self.method.process(base), guidance_interval=base.guidance_interval)

    def bind(self, backbone: Backbone, scorers: LookScorers) -> None:
        """As the other method."""
        self.method.bind(backbone, scorers)

    def program(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> EpisodeProgram:
        """As the other method."""
        return self.method.program(backbone, process, prompt, seed)

    def decide(self, requests: Sequence[Decide]) -> list[int]:
        """As the other method."""
        return self.method.decide(requests)

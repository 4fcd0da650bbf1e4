"""Any sampler without learning under the guidance interval of the evaluation's process: ``interval:fixed:6``.

Guidance outside a middle range of noise levels costs a second network call and gains nothing, or harms
(Kynkaanniemi et al. 2024, arXiv:2404.07724). A policy whose process limits guidance must be compared with samplers that
do the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.lane import Decide
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import ConfigError
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import BaseSampler, EpisodeCoroutine, Sampler
from addiffusion_env.samplers.traits import ScoresUsed, Traits
from addiffusion_env.scorers.image_scores import ImageScorers


def _as_other(name: str) -> property:
    """A trait copied from the wrapped sampler."""
    return property(lambda self: getattr(self.sampler, name, getattr(BaseSampler, name)), doc="As the wrapped sampler.")


@dataclass(frozen=True)
class Interval(BaseSampler):
    """Wraps a sampler to run it under the process's guidance interval.

    Attributes:
        sampler: the wrapped sampler.
    """

    sampler: Sampler

    usage: ClassVar[str] = "interval:METHOD:NUMBERS"
    example: ClassVar[tuple[str, str]] = ("emoji", "interval:threshold_resample:1.5,2,2")

    kind, constant, bound, needs_preview, selects_by, attempt_counts = map(  # type: ignore[assignment]
        _as_other, ("kind", "constant", "bound", "needs_preview", "selects_by", "attempt_counts")
    )

    @property
    def scores_used(self) -> ScoresUsed:
        """As the other sampler."""
        return Traits.of(self.sampler).scores_used

    @property
    def curve(self) -> str:  # type: ignore[override]
        """The wrapped sampler's curve under the interval."""
        return f"interval:{curve}" if (curve := Traits.of(self.sampler).curve) else ""

    def __post_init__(self) -> None:
        if isinstance(self.sampler, Interval):
            raise ConfigError("interval: a sampler was put under the interval twice", "write interval: once")
        if not getattr(self.sampler, "uses_engine", True):
            raise ConfigError(
                f"interval: {self.sampler.name} runs a whole diffusers pipeline, which guides every step or none",
                f"use {self.sampler.name} itself",
            )

    @classmethod
    def parse(cls, text: str) -> Interval:
        """``"fixed:6"``, ``"threshold_resample:0.4,6"``: any specification."""
        from addiffusion_env.samplers import make_sampler

        if text.count("interval:") > 1:  # checked before parsing: a thousand of them would exceed the recursion limit
            raise ConfigError(f"sampler {text[:60]!r} names interval more than once", "write interval: once")
        return cls(make_sampler(text))

    @property
    def name(self) -> str:
        """``interval:fixed:6``."""
        return f"interval:{self.sampler.name}"

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The wrapped sampler's process with the guidance interval of ``base``."""
        return replace(self.sampler.process(base), guidance_interval=base.guidance_interval)

    def bind(self, backbone: Backbone, scorers: ImageScorers) -> None:
        """As the other sampler."""
        self.sampler.bind(backbone, scorers)

    def coroutine(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> EpisodeCoroutine:
        """As the other sampler."""
        return self.sampler.coroutine(backbone, process, prompt, seed)

    def decide(self, requests: Sequence[Decide]) -> list[int]:
        """As the other sampler."""
        return self.sampler.decide(requests)

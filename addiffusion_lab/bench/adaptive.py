"""`AdaptivePipeline` on a queue of prompts: always continuing, or by any method's specification."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from addiffusion_env.agents.learned import LearnedMethod
from addiffusion_env.agents.pipeline import AdaptivePipeline
from addiffusion_env.baselines import make_method
from addiffusion_env.baselines.base import BaseMethod
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_lab.bench.bed import Arm, Bed, Done


@dataclass(frozen=True)
class Continue(BaseMethod):
    """Looks at previews as a learned policy does, and always goes on: what looking costs by itself.

    Attributes:
        every: evaluations between two looks.
    """

    every: int
    usage: ClassVar[str] = "continue:EVERY"
    needs_preview: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """For its row."""
        return f"AdaptivePipeline, continue, look every {self.every}"

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The base schedule with a decision every so many evaluations."""
        return replace(base, decide_every=self.every)


class Adaptive(Arm):
    """A method's pictures through the pipeline, ``bed.lanes`` at once."""

    def __init__(self, bed: Bed, method: Any, name: str, images: int) -> None:
        self.name, self.bed, self.images = name, bed, images
        # A trained policy knows only the process that it was trained on.
        process = None if isinstance(method, LearnedMethod) else bed.process
        self.pipe = AdaptivePipeline(bed.backbone, method, process, bed.scorers, max_lanes=bed.lanes)
        self.texts = [prompt.text for prompt in bed.prompts(images)]

    def round(self) -> Done:
        """The whole queue."""
        out = self.pipe(self.texts, output_type="np")
        return Done(float(out.nfe.sum()), len(self.texts))


def always_continue(bed: Bed) -> Adaptive:
    """The all-continue policy with a look every ``bed.look_every`` evaluations, one picture a lane."""
    method = Continue(bed.look_every)
    return Adaptive(bed, method, method.name, bed.lanes)


def by_method(bed: Bed, spec: str) -> Adaptive:
    """A method by its specification; ``policy:emoji`` is the policy that ships with the package.

    Raises:
        UnknownNameError: for an unknown method.
    """
    return Adaptive(bed, make_method(spec), f"AdaptivePipeline, {spec}", bed.images)

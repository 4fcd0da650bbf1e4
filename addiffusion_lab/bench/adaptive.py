"""`AdaptivePipeline` on a queue of prompts: always continuing, or with any sampler by its specification."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from addiffusion_env.agents.pipeline import AdaptivePipeline
from addiffusion_env.agents.saved_policy import SavedPolicy
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.samplers import make_sampler
from addiffusion_env.samplers.base import BaseSampler
from addiffusion_lab.bench.setup import Arm, BenchmarkSetup, RoundResult


@dataclass(frozen=True)
class Continue(BaseSampler):
    """Scores previews as a learned policy does, but always continues: measures the cost of preview scores.

    Attributes:
        every: evaluations between two previews.
    """

    every: int
    usage: ClassVar[str] = "continue:EVERY"
    needs_preview: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name of the table row."""
        return f"AdaptivePipeline, continue, preview every {self.every}"

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The base schedule with a decision every ``every`` evaluations."""
        return replace(base, decide_every=self.every)


class Adaptive(Arm):
    """Generates a sampler's images through the pipeline, ``setup.lanes`` at once."""

    def __init__(self, setup: BenchmarkSetup, sampler: Any, name: str, images: int) -> None:
        self.name, self.setup, self.images = name, setup, images
        # A trained policy supports only the process that it was trained on.
        process = None if isinstance(sampler, SavedPolicy) else setup.process
        self.pipe = AdaptivePipeline(setup.backbone, sampler, process, setup.scorers, max_lanes=setup.lanes)
        self.prepare(0)

    def prepare(self, number: int) -> None:
        """Takes new prompts."""
        self.texts = [prompt.text for prompt in self.setup.prompts(self.images, seed=number)]

    def round(self) -> RoundResult:
        """Processes the whole queue."""
        out = self.pipe(self.texts, output_type="np")
        return RoundResult(float(out.nfe.sum()), len(self.texts))


def always_continue(setup: BenchmarkSetup) -> Adaptive:
    """The always-continue policy with a preview every ``setup.preview_every`` evaluations, one image per lane."""
    sampler = Continue(setup.preview_every)
    return Adaptive(setup, sampler, sampler.name, setup.lanes)


def by_sampler(setup: BenchmarkSetup, spec: str) -> Adaptive:
    """The arm of a sampler's specification; ``policy:emoji`` is the policy that ships with the package.

    Raises:
        UnknownNameError: for an unknown sampler.
    """
    return Adaptive(setup, make_sampler(spec), f"AdaptivePipeline, {spec}", setup.images)

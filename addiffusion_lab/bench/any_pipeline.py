"""The general pipeline backbone on the same weights, for comparison with the hand-written one."""

from __future__ import annotations

from addiffusion_env.agents.pipeline import AdaptivePipeline
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_lab.bench.diffusers_pipeline import pipeline_of
from addiffusion_lab.bench.setup import Arm, BenchmarkSetup, RoundResult


class AnyPipeline(Arm):
    """``AdaptivePipeline(pipe, "continue")``: the pipeline's own scheduler, no previews; one image per lane.

    Compare it with the sampler ``fixed:N``, which takes equally many evaluations on the setup's own backbone.
    """

    name = "AdaptivePipeline around the diffusers pipeline, continue"
    own_calls = False

    def __init__(self, setup: BenchmarkSetup) -> None:
        own = isinstance(setup.backbone, PipelineBackbone)
        backbone = setup.backbone if own else PipelineBackbone(pipeline_of(setup.backbone), preview="none")
        self.setup, self.pipe = setup, AdaptivePipeline(backbone, "continue", max_lanes=setup.lanes)
        self.pipe.set_progress_bar_config(disable=True)
        self.prepare(0)

    def prepare(self, number: int) -> None:
        """Takes new prompts."""
        self.texts = [prompt.text for prompt in self.setup.prompts(self.setup.lanes, seed=number)]

    def round(self) -> RoundResult:
        """Generates one image per lane."""
        out = self.pipe(self.texts, output_type="np", num_inference_steps=self.setup.steps)
        return RoundResult(float(out.nfe.sum()), len(self.texts))

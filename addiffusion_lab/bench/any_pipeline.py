"""The backbone of any pipeline on the same weights, beside the hand-written one."""

from __future__ import annotations

from addiffusion_env.agents.pipeline import AdaptivePipeline
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_lab.bench.bed import Arm, Bed, Done
from addiffusion_lab.bench.diffusers_pipeline import pipeline_of


class AnyPipeline(Arm):
    """``AdaptivePipeline(pipe, "continue")``: the pipeline's own scheduler, no previews; one image a lane.

    Hold it against the method ``fixed:N``, which makes as many evaluations on the bed's own backbone.
    """

    name = "AdaptivePipeline around the diffusers pipeline, continue"
    own_calls = False

    def __init__(self, bed: Bed) -> None:
        own = isinstance(bed.backbone, PipelineBackbone)
        backbone = bed.backbone if own else PipelineBackbone(pipeline_of(bed.backbone), preview="none")
        self.bed, self.pipe = bed, AdaptivePipeline(backbone, "continue", max_lanes=bed.lanes)
        self.pipe.set_progress_bar_config(disable=True)
        self.texts = [prompt.text for prompt in bed.prompts(bed.lanes)]

    def round(self) -> Done:
        """One image a lane."""
        out = self.pipe(self.texts, output_type="np", num_inference_steps=self.bed.steps)
        return Done(float(out.nfe.sum()), len(self.texts))

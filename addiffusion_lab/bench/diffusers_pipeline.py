"""diffusers' own pipeline on the same weights: all images in one batch at the same step, decoded at the end."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.backbones.stable_diffusion import StableDiffusionBackbone
from addiffusion_lab.bench.setup import Arm, BenchmarkSetup, RoundResult

WITHOUT = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def pipeline_of(backbone: Backbone) -> Any:
    """The diffusers pipeline of a backbone; the weights are shared, and each text is encoded once, as in the engine."""
    if isinstance(backbone, PipelineBackbone):
        pipe = copy.copy(backbone.pipe)
        pipe.__dict__["scheduler"] = copy.deepcopy(pipe.scheduler)
        pipe.__dict__.update(backbone.evaluator.texts.overrides())
    else:
        from diffusers import StableDiffusionPipeline

        assert isinstance(backbone, StableDiffusionBackbone)
        names = [item.name for item in fields(backbone.parts) if item.name != "preview"]
        pipe = StableDiffusionPipeline(**{name: getattr(backbone.parts, name) for name in names}, **WITHOUT)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class DiffusersPipeline(Arm):
    """The pipeline with the same batch size and pre-encoded prompts."""

    name = "diffusers pipeline"
    own_calls = False

    def __init__(self, setup: BenchmarkSetup) -> None:
        self.setup, self.pipe = setup, pipeline_of(setup.backbone)
        texts = [prompt.text for prompt in setup.prompts(setup.lanes)]
        if isinstance(setup.backbone, PipelineBackbone):
            self.settings = {**setup.backbone.arguments.given, "prompt": texts}
        else:
            tensors = setup.backbone.encode(texts).tensors
            self.settings = {"prompt_embeds": tensors["text"], "negative_prompt_embeds": tensors["negative"]}

    def round(self) -> RoundResult:
        """Generates one batch of images, from the pipeline's own noise."""
        setup, capabilities = self.setup, self.setup.backbone.capabilities
        settings = {**self.settings, "num_inference_steps": setup.steps, "output_type": "pt"}
        if not isinstance(setup.backbone, PipelineBackbone):
            settings |= dict(zip(("height", "width"), capabilities.image_size, strict=True))
            settings["guidance_scale"] = capabilities.default_guidance
        self.pipe(**settings)
        return RoundResult(setup.lanes * setup.steps, setup.lanes)

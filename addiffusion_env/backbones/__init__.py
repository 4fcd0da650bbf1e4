"""Diffusion models that can be driven one evaluation at a time. A new one is one file and one line here."""

from addiffusion_env.registry import Registry

BACKBONES = Registry(
    "backbone",
    {
        "emoji": "addiffusion_env.backbones.emoji.backbone:EmojiBackbone",
        "sd15": "addiffusion_env.backbones.sd15:SD15Backbone",
        "sd21": "addiffusion_env.backbones.sd21:SD21Backbone",
        "sdxl": "addiffusion_env.backbones.sdxl:SDXLBackbone",
        "flux": "addiffusion_env.backbones.flux:FluxBackbone",
        "sd35": "addiffusion_env.backbones.sd35:SD35Backbone",
        "flux2_klein": "addiffusion_env.backbones.flux2_klein:Flux2KleinBackbone",
        "z_image": "addiffusion_env.backbones.z_image:ZImageBackbone",
        "qwen_image": "addiffusion_env.backbones.qwen_image:QwenImageBackbone",
        "diffusers": "addiffusion_env.backbones.pipeline_backbone:PipelineBackbone",
    },
)

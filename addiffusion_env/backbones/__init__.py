"""Diffusion models that can be driven one evaluation at a time. A new one is one file and one line here."""

from addiffusion_env.registry import Registry

BACKBONES = Registry(
    "backbone",
    {
        "emoji": "addiffusion_env.backbones.emoji.backbone:EmojiBackbone",
    },
)

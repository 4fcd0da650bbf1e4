"""The backbone of a diffusers pipeline that somebody else has loaded."""

from __future__ import annotations

from typing import Any

from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.pipelines import BACKBONE_OF
from addiffusion_env.errors import CapabilityError

SD2_TEXT_WIDTH = 1024
"""Numbers in a text feature of Stable Diffusion 2.x (OpenCLIP ViT-H/14); 1.x has 768."""


def backbone_of(pipe: Any) -> Backbone:
    """The backbone of any loaded diffusers pipeline that one is made for, with that backbone's own options.

    Stable Diffusion 1.x and 2.x share a class; the width of the text features tells them apart (OpenCLIP ViT-H/14's
    1024 numbers are 2.x's).

    Raises:
        CapabilityError: for a pipeline of another class.
    """
    names = [kind.__name__ for kind in type(pipe).__mro__]
    backbone = next((BACKBONE_OF[name] for name in names if name in BACKBONE_OF), None)
    if backbone is None:
        raise CapabilityError(
            f"no backbone is made for a {type(pipe).__name__}", f"pass one of {', '.join(BACKBONE_OF)}, or a Backbone"
        )
    if backbone == "sd15" and pipe.unet.config.cross_attention_dim == SD2_TEXT_WIDTH:
        backbone = "sd21"
    return BACKBONES.load(backbone).from_pipeline(pipe)

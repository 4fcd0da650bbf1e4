"""The backbone of a diffusers pipeline that somebody else has loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.hub import read_json
from addiffusion_env.backbones.pipelines import BACKBONE_OF, INDEX
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
    name = backbone_named(kind.__name__ for kind in type(pipe).__mro__)
    if name == "sd15" and pipe.unet.config.cross_attention_dim == SD2_TEXT_WIDTH:
        name = "sd21"
    return BACKBONES.load(name).from_pipeline(pipe)


def backbone_in(folder: Path) -> str | None:
    """The name of the backbone for a folder in diffusers' format, told as :func:`backbone_of` tells it.

    Returns:
        ``None`` for a folder of another kind.

    Raises:
        CapabilityError: for a pipeline that no backbone is made for.
        WeightsError: when its index cannot be read.
    """
    kind = read_json(folder / INDEX).get("_class_name") if (folder / INDEX).is_file() else None
    if kind is None:
        return None
    name = backbone_named([str(kind)])
    unet = folder / "unet" / "config.json"
    if name == "sd15" and unet.is_file() and read_json(unet).get("cross_attention_dim") == SD2_TEXT_WIDTH:
        return "sd21"
    return name


def backbone_named(kinds: Iterable[str]) -> str:
    """The backbone that is made for the first of a pipeline's classes that any is made for.

    Raises:
        CapabilityError: for a pipeline of another class.
    """
    names = list(kinds)
    found = next((BACKBONE_OF[name] for name in names if name in BACKBONE_OF), None)
    if found is None:
        raise CapabilityError(
            f"no backbone is made for a {names[0]}", f"pass one of {', '.join(BACKBONE_OF)}, or a Backbone"
        )
    return found

"""The backbone of a diffusers pipeline that somebody else has loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.backbones.pipelines import INDEX


def backbone_of(pipe: Any) -> Backbone:
    """The backbone of any loaded text-to-image pipeline, driven by its own ``__call__``.

    Raises:
        CapabilityError: for an object that is no such pipeline.
    """
    return PipelineBackbone(pipe)


def backbone_in(folder: Path) -> str | None:
    """The name of the backbone for a folder in diffusers' format; ``None`` for a folder of another kind."""
    return PipelineBackbone.name if (folder / INDEX).is_file() else None

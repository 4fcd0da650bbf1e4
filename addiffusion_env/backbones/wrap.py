"""The backbone of a diffusers pipeline that somebody else has loaded."""

from __future__ import annotations

from typing import Any

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone


def backbone_of(pipe: Any) -> Backbone:
    """The backbone of any loaded text-to-image pipeline, driven by its own ``__call__``.

    Raises:
        CapabilityError: for an object that is no such pipeline.
    """
    return PipelineBackbone(pipe)

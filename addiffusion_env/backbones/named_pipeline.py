"""Registered backbones of one pipeline class: the general backbone with a default checkpoint and default options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from addiffusion_env.backbones.base import Load
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.backbones.pipelines import BACKBONE_OF, PipelineSpec, load_pipeline
from addiffusion_env.errors import WeightsError
from addiffusion_env.files import OnTheHub

if TYPE_CHECKING:
    from typing_extensions import Self


class NamedPipeline(OnTheHub, PipelineBackbone):
    """A :class:`PipelineBackbone` with a default checkpoint.

    Attributes:
        spec: the checkpoint.
    """

    spec: ClassVar[PipelineSpec]
    argument_options: ClassVar[Mapping[str, tuple[str, ...]]] = {"image_size": ("height", "width")}

    @classmethod
    def _loaded(cls, load: Load, variant: str | None, offload: str) -> Any:
        return load_pipeline(load, variant, offload, cls.spec)

    @classmethod
    def from_pipeline(cls, pipe: Any, pipeline_kwargs: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """See :meth:`PipelineBackbone.from_pipeline`; ``pipe`` is of the spec's class or one made from it."""
        names = [kind.__name__ for kind in type(pipe).__mro__]
        if cls.spec.kind not in names:
            other = next((BACKBONE_OF[name] for name in names if name in BACKBONE_OF), "diffusers")
            raise WeightsError(
                f"the {cls.spec.backbone} backbone needs a {cls.spec.kind}, got a {type(pipe).__name__}",
                f"use the {other} backbone",
            )
        return cls(pipe, pipeline_kwargs, **options)

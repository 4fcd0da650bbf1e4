"""Registered backbones of one class of pipelines: the general backbone with a checkpoint and defaults of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from addiffusion_env.backbones.base import Load
from addiffusion_env.backbones.hub import OnTheHub
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.backbones.pipeline_options import PipelineOptions
from addiffusion_env.backbones.pipelines import BACKBONE_OF, PipelineSpec, load_pipeline
from addiffusion_env.errors import WeightsError

if TYPE_CHECKING:
    from typing_extensions import Self


class NamedPipeline(OnTheHub, PipelineBackbone):
    """A :class:`PipelineBackbone` that knows where its weights are.

    Attributes:
        spec: which checkpoint.
        own: arguments of the pipeline's call that differ from the pipeline's own defaults.
        argument_options: options that stand for arguments of the call: ``image_size`` is ``height`` and ``width``.
    """

    spec: ClassVar[PipelineSpec]
    own: ClassVar[Mapping[str, Any]] = {}
    argument_options: ClassVar[Mapping[str, tuple[str, ...]]] = {"image_size": ("height", "width")}

    def __init__(self, pipe: Any, arguments: Mapping[str, Any] | None = None, **options: Any) -> None:
        names = self.argument_options
        plain = {name: value for name, value in options.items() if name not in names}
        PipelineOptions.of(plain, self.name, names)
        meant = {name: options[key] for key in names if options.get(key) is not None for name in names[key]}
        super().__init__(pipe, {**self.own, **meant, **(arguments or {})}, **plain)

    @classmethod
    def from_pretrained(cls, load: Load | None = None) -> Self:
        """Loads the pipeline that ``load`` names, by default the spec's.

        Its options are those of :class:`PipelineOptions`, ``image_size`` and the like, ``variant`` of the weight files
        (``"fp16"``), and ``pipeline_kwargs``.

        Raises:
            WeightsError: when weights cannot be had, are of another kind, incomplete, or too large for the GPU; each
                names the id, the place, and what to do.
            ConfigError: for an unknown option, or a device or precision that is not to be had.
        """
        load = load or Load()
        options = dict(load.options)
        variant, arguments = options.pop("variant", None), options.pop("pipeline_kwargs", None)
        plain = {name: value for name, value in options.items() if name not in cls.argument_options}
        offload = PipelineOptions.of(plain, cls.name, (*cls.argument_options, "variant")).offload
        return cls(load_pipeline(cls.spec, load, offload, variant), arguments, **options)

    @classmethod
    def from_pipeline(cls, pipe: Any, pipeline_kwargs: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """Makes the backbone of a loaded pipeline, where it lies: a fine-tune, one with a LoRA, one from a single file.

        Args:
            pipe: a pipeline of the class that the backbone is made for, or of a subclass.
            pipeline_kwargs: arguments of its ``__call__`` for every image.
            **options: the fields of :class:`PipelineOptions`, ``image_size`` and the like.

        Raises:
            WeightsError: for a pipeline of another kind.
            ConfigError: for an unknown option.
        """
        names = [kind.__name__ for kind in type(pipe).__mro__]
        if cls.spec.kind not in names:
            other = next((BACKBONE_OF[name] for name in names if name in BACKBONE_OF), "diffusers")
            raise WeightsError(
                f"the {cls.spec.backbone} backbone is made of a {cls.spec.kind}, got a {type(pipe).__name__}",
                f"use the {other} backbone",
            )
        return cls(pipe, pipeline_kwargs, **options)

"""Options of a loaded pipeline that change speed and memory use, not the images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import nn

from addiffusion_env.backbones.compiled import buckets_for, check_mode, compiled
from addiffusion_env.backbones.devices import resolve_device
from addiffusion_env.backbones.memory import is_offloaded, place
from addiffusion_env.errors import ConfigError, nearest, unknown
from addiffusion_env.settings import Settings

OFFLOADS = ("none", "model", "sequential")


@dataclass(frozen=True)
class SizeOption(Settings):
    """``image_size``: side of the square image in pixels, of a backbone of one pipeline class."""

    section: ClassVar[str] = "backbone_options"

    image_size: int | None = None


@dataclass(frozen=True)
class PipelineOptions(Settings):
    """Options of every backbone that wraps a pipeline (``Load.options``, ``backbone_options``).

    Attributes:
        preview: an ``AutoencoderTiny``, its hub id or folder, ``"linear"`` (a least-squares map, fitted at the first
            preview), or ``"none"``; ``None`` selects the family's tiny decoder if it is available.
        truncate_prompts: let the pipeline drop the end of a prompt that does not fit, instead of refusing it.
        compile: ``torch.compile`` the denoisers: ``True``, or one of its modes (``"max-autotune"``;
            ``"reduce-overhead"`` records CUDA graphs). On a machine without a compiler they run uncompiled.
        batch_buckets: numbers of rows that a network call is padded to (two rows per guided evaluation), so that only
            these sizes are compiled; ``None`` is :data:`backbones.compiled.BUCKETS` when compiled and no padding
            otherwise.
        channels_last: store the weights of convolutions in channels-last format.
        offload: ``none``; ``model`` keeps one component on the GPU at a time; ``sequential`` one layer.
        vae_tiling: decode large images in tiles.
    """

    section: ClassVar[str] = "backbone_options"

    retired: ClassVar[Mapping[str, str]] = {
        "attention_slicing": "call pipe.enable_attention_slicing() on your own pipeline and give it as pipe=",
        "max_sequence_length": "write it in backbone_options.pipeline_kwargs",
        "distilled_guidance": "write it as guidance_scale in backbone_options.pipeline_kwargs",
    }

    preview: str | nn.Module | None = None
    truncate_prompts: bool = False
    compile: bool | str = False
    batch_buckets: Sequence[int] | None = None
    channels_last: bool = False
    offload: str = "none"
    vae_tiling: bool = False

    @classmethod
    def from_keywords(cls, options: Mapping[str, Any], backbone: str, more: Iterable[str] = ()) -> PipelineOptions:
        """Creates options from keywords.

        Args:
            options: the keywords.
            backbone: name of the backbone, for errors.
            more: further option names that the backbone supports.

        Raises:
            ConfigError: for a keyword that the backbone does not have, with the nearest name, or an invalid value.
            UnknownNameError: for an unknown kind of offloading or mode of compilation.
        """
        known = [item.name for item in fields(cls)]
        for name in options:
            if name not in known:
                remedy = cls.retired.get(name) or nearest(name, [*known, *more])
                raise ConfigError(f"the {backbone} backbone has no option {name!r}", remedy)
        return cls(**options)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.compile, str):
            check_mode(self.compile)
        if self.offload not in OFFLOADS:
            raise unknown("offload", self.offload, OFFLOADS)
        buckets_for(self.compile, self.batch_buckets)

    @property
    def buckets(self) -> tuple[int, ...]:
        """Numbers of rows that a network call is padded to; empty for no padding."""
        return buckets_for(self.compile, self.batch_buckets)

    def prepare(self, pipe: Any) -> None:
        """Sets a pipeline up before it is measured: device, offloading, tiling.

        Raises:
            ConfigError: for a feature that the pipeline's components do not support, or offloading without a GPU.
            WeightsError: when it does not fit the GPU.
        """
        if self.offload != "none" and not is_offloaded(pipe):
            place(pipe, type(pipe).__name__, resolve_device("auto"), self.offload)
        if self.vae_tiling:
            vae: Any = getattr(pipe, "vae", None)
            if not hasattr(vae, "enable_tiling"):
                raise ConfigError(f"vae_tiling was set, and {type(vae).__name__} has no tiling", "leave it out")
            vae.enable_tiling()

    def compute_forms(self, pipe: Any, denoisers: Sequence[nn.Module], device: torch.device) -> dict[int, Any]:
        """Sets the denoisers up after they have been determined.

        Returns:
            Compiled replacements of denoisers, by their ``id``; empty if they are not compiled.

        Raises:
            ConfigError: for ``channels_last`` where there is no convolution.
        """
        if self.channels_last:
            if not any(value.ndim == 4 for denoiser in denoisers for value in denoiser.parameters()):
                kinds = ", ".join(type(denoiser).__name__ for denoiser in denoisers)
                raise ConfigError(f"channels_last was set, and there is no convolution in a {kinds}", "leave it out")
            for part in (*denoisers, getattr(pipe, "vae", None)):
                if isinstance(part, nn.Module):
                    part.to(memory_format=torch.channels_last)
        if not self.compile:
            return {}
        forms = {id(denoiser): compiled(denoiser, self.compile, device) for denoiser in denoisers}
        return {key: form for key, form in forms.items() if form is not None}

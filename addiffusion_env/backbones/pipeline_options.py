"""How a loaded pipeline computes: options that change speed and memory, not what is drawn."""

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
class ArgumentOptions(Settings):
    """Options that stand for arguments of a pipeline's call; which of them a backbone has, it says itself.

    Attributes:
        image_size: side of the square image in pixels.
        max_sequence_length: tokens of Flux's T5.
        distilled_guidance: the scale that FLUX.1-dev reads as an input.
    """

    section: ClassVar[str] = "backbone_options"

    image_size: int | None = None
    max_sequence_length: int | None = None
    distilled_guidance: float | None = None

    @classmethod
    def arguments(cls, options: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The arguments of the call that options stand for.

        Args:
            options: of a backbone; others than those of this class are left aside.
            names: of the options that it has, each with the arguments that it stands for.

        Raises:
            ConfigError: for a value of another type.
        """
        chosen = {key: options[key] for key in names if options.get(key) is not None}
        cls(**chosen)
        return {name: value for key, value in chosen.items() for name in names[key]}


@dataclass(frozen=True)
class PipelineOptions(Settings):
    """What every backbone made of a pipeline can be told by name (``Load.options``, ``backbone_options``).

    Attributes:
        preview: an ``AutoencoderTiny``, its hub id or folder, ``"linear"`` (a least-squares map, fitted at the first
            preview), or ``"none"``; ``None`` takes the family's tiny decoder where it is to be had.
        truncate_prompts: let the pipeline drop the end of a prompt that does not fit, instead of refusing it.
        compile: ``torch.compile`` the denoisers: ``True``, or one of its modes (``"max-autotune"``;
            ``"reduce-overhead"`` records CUDA graphs). On a machine without a compiler they run as they are.
        batch_buckets: numbers of rows that a network call is filled up to, a guided evaluation taking two, so that
            there is a graph for each and none for the sizes between; ``None`` is :data:`backbones.compiled.BUCKETS`
            when compiled and no filling otherwise.
        channels_last: keep the weights of convolutions channels-last.
        offload: ``none``; ``model`` keeps one component on the GPU at a time; ``sequential`` one layer.
        vae_tiling: decode large images in tiles.
    """

    section: ClassVar[str] = "backbone_options"

    retired: ClassVar[Mapping[str, str]] = {
        "attention_slicing": "call pipe.enable_attention_slicing() on your own pipeline and give it as pipe="
    }

    preview: str | nn.Module | None = None
    truncate_prompts: bool = False
    compile: bool | str = False
    batch_buckets: Sequence[int] | None = None
    channels_last: bool = False
    offload: str = "none"
    vae_tiling: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any], backbone: str, more: Iterable[str] = ()) -> PipelineOptions:
        """Options from keywords.

        Args:
            options: the keywords.
            backbone: for the error.
            more: names that the backbone has besides.

        Raises:
            ConfigError: for a keyword that the backbone does not have, with the nearest one, or a wrong value.
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
        """Numbers of rows that a network call is filled up to; empty for no filling."""
        return buckets_for(self.compile, self.batch_buckets)

    def prepare(self, pipe: Any) -> None:
        """Sets a pipeline up, before it is measured: where it lies, tiles.

        Raises:
            ConfigError: for what the pipeline's parts do not have, or offloading without a GPU.
            WeightsError: when it does not fit the GPU.
        """
        if self.offload != "none" and not is_offloaded(pipe):
            place(pipe, type(pipe).__name__, resolve_device("auto"), self.offload)
        if self.vae_tiling:
            vae: Any = getattr(pipe, "vae", None)
            if not hasattr(vae, "enable_tiling"):
                raise ConfigError(f"vae_tiling was set, and a {type(vae).__name__} has no tiles", "leave it out")
            vae.enable_tiling()

    def compute_forms(self, pipe: Any, denoisers: Sequence[nn.Module], device: torch.device) -> dict[int, Any]:
        """Sets the denoisers up, once they are known.

        Returns:
            What to call in a denoiser's place, by its ``id``; empty for the denoisers themselves.

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

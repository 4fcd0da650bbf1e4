"""Loading whole diffusers pipelines: found, checked for kind and completeness, placed, and set up as asked.

What a folder lacks is said before anything is loaded, with the file's name: diffusers would fail deep inside a
component with a message about tensors, after minutes of reading the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from addiffusion_env.backbones.base import Load
from addiffusion_env.backbones.compiled import buckets_for, check_mode, compiled
from addiffusion_env.backbones.devices import dtype_keyword, resolve_device, resolve_dtype
from addiffusion_env.backbones.hub import (
    WORKS_OFFLINE,
    OnTheHub,
    again,
    check_safetensors,
    file_in,
    hub_file,
    in_a_line,
    looks_like_path,
    read_json,
    reason_of,
    unavailable,
    variant_of,
)
from addiffusion_env.backbones.memory import place
from addiffusion_env.backbones.previews import PreviewSpec
from addiffusion_env.backbones.quiet import quiet_loading
from addiffusion_env.errors import ConfigError, WeightsError, nearest, unknown
from addiffusion_env.typed import check_types

if TYPE_CHECKING:
    from typing_extensions import Self

OFFLOADS = ("none", "model", "sequential")
INDEX = "model_index.json"
NEEDED = (INDEX, "*/*")
"""What is asked of a pipeline's repository: its components; at the top lie single files of the same weights."""

FLUX_ONLY = ("max_sequence_length", "distilled_guidance")
"""Options of Flux's that mean nothing to a UNet."""

BACKBONE_OF = {"StableDiffusionPipeline": "sd15", "StableDiffusionXLPipeline": "sdxl", "FluxPipeline": "flux"}
"""Which backbone a pipeline's class belongs to."""


@dataclass(frozen=True)
class PipelineSpec:
    """Which checkpoint a backbone is made of.

    Attributes:
        backbone: the registry name.
        kind: name of the pipeline's class in diffusers, as ``model_index.json`` has it.
        default_id: hub id that is loaded unless another is named.
        unused: components that are neither downloaded nor loaded.
        refused: names of :class:`PipelineOptions` that mean nothing for it.
        auto_dtype: precision on a GPU unless one is named: the one that the checkpoint is published for.
    """

    backbone: str
    kind: str
    default_id: str
    unused: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    auto_dtype: str = "float16"


@dataclass(frozen=True)
class PipelineOptions:
    """What is passed through by name (``Load.options``; ``backbone_options`` of an environment).

    Attributes:
        variant: of the weight files (``"fp16"``), for repositories that have more than one.
        image_size: side of the square picture in pixels; ``None`` is the model's own.
        preview: hub id or folder of an ``AutoencoderTiny``, or ``"linear"``; ``None`` is the backbone's own.
        compile: ``torch.compile`` the denoiser: ``True``, or one of its modes (``"max-autotune"``;
            ``"reduce-overhead"`` records CUDA graphs). On a machine without a compiler it runs as it is.
        batch_buckets: numbers of rows that a network call is filled up to, a guided evaluation taking two, so that
            there is a graph for each and none for the sizes between; ``None`` is :data:`backbones.compiled.BUCKETS`
            when compiled and no filling otherwise.
        channels_last: keep the weights of convolutions channels-last.
        offload: ``none``; ``model`` keeps one component on the GPU at a time; ``sequential`` one layer.
        vae_tiling: decode large pictures in tiles.
        attention_slicing: compute attention in slices: ``True``, ``"max"`` or a number of heads.
        truncate_prompts: drop the end of a prompt that does not fit, instead of refusing it.
        max_sequence_length: tokens of Flux's T5; 256 is what FLUX.1-schnell was trained with.
        distilled_guidance: the scale that FLUX.1-dev reads as an input; FLUX.1-schnell has none.
    """

    variant: str | None = None
    image_size: int | None = None
    preview: str | None = None
    compile: bool | str = False
    batch_buckets: Sequence[int] | None = None
    channels_last: bool = False
    offload: str = "none"
    vae_tiling: bool = False
    attention_slicing: bool | str | int = False
    truncate_prompts: bool = False
    max_sequence_length: int = 256
    distilled_guidance: float = 3.5

    @classmethod
    def of(cls, options: Mapping[str, Any] | None, spec: PipelineSpec) -> PipelineOptions:
        """Options from keywords.

        Raises:
            ConfigError: for a keyword that the backbone does not have, with the nearest one, or a wrong value.
            UnknownNameError: for an unknown kind of offloading or mode of compilation.
        """
        known = [item.name for item in fields(cls) if item.name not in spec.refused]
        for name in options or {}:
            if name not in known:
                raise ConfigError(f"the {spec.backbone} backbone has no option {name!r}", nearest(name, known))
        found = cls(**(options or {}))
        check_types("backbone_options.", found)
        if isinstance(found.compile, str):
            check_mode(found.compile)
        if found.offload not in OFFLOADS:
            raise unknown("offload", str(found.offload), OFFLOADS)
        return found


class FromPipeline(OnTheHub, ABC):
    """A backbone made of a diffusers pipeline: from the hub, from a folder, or from one that is loaded already.

    Attributes:
        spec: which checkpoint.
        preview_spec: how its latents are looked at.
        offload_hooks: of its components, with ``offload=model``; see :meth:`DiffusersBackbone.alone`.
        buckets: batch sizes of a network call.
    """

    spec: ClassVar[PipelineSpec]
    preview_spec: ClassVar[PreviewSpec]
    offload_hooks: Sequence[Any]
    buckets: Sequence[int]

    @classmethod
    def from_pretrained(cls, load: Load | None = None) -> Self:
        """Loads the pipeline that ``load`` names, by default the spec's.

        Raises:
            WeightsError: when weights cannot be had, are of another kind, incomplete, or too large for the GPU; each
                names the id, the place, and what to do.
            ConfigError: for an unknown option, or a device or precision that is not to be had.
        """
        load = load or Load()
        options = PipelineOptions.of(load.options, cls.spec)
        return cls._built(load_pipeline(cls.spec, load, options), options, options.preview)

    @classmethod
    def from_pipeline(cls, pipe: Any, preview: str | nn.Module | None = None, **options: Any) -> Self:
        """Makes the backbone of a loaded pipeline, where it lies: a fine-tune, one with a LoRA, one from a single file.

        The weights are shared with ``pipe`` and frozen; its scheduler is read, not used.

        Args:
            pipe: a pipeline of the class that the backbone is made for, or of a subclass.
            preview: an ``AutoencoderTiny``, its hub id or folder, or ``"linear"``; ``None`` is the backbone's own.
            **options: the fields of :class:`PipelineOptions`.

        Raises:
            WeightsError: for a pipeline of another kind.
            ConfigError: for an unknown option.
        """
        names = [kind.__name__ for kind in type(pipe).__mro__]
        if cls.spec.kind not in names:
            other = next((BACKBONE_OF[name] for name in names if name in BACKBONE_OF), None)
            raise WeightsError(
                f"the {cls.spec.backbone} backbone is made of a {cls.spec.kind}, got a {type(pipe).__name__}",
                f"use the {other} backbone" if other else f"load it with diffusers.{cls.spec.kind}",
            )
        chosen = PipelineOptions.of(options, cls.spec)
        if chosen.offload != "none":
            place(pipe, type(pipe).__name__, resolve_device("auto"), chosen.offload)
        return cls._built(pipe, chosen, preview)

    @classmethod
    def _built(cls, pipe: Any, options: PipelineOptions, preview: str | nn.Module | None) -> Self:
        backbone = cls.build(pipe, options, preview)
        backbone.offload_hooks = tuple(getattr(pipe, "_all_hooks", ()))
        backbone.buckets = buckets_for(options.compile, options.batch_buckets)
        return backbone

    @classmethod
    @abstractmethod
    def build(cls, pipe: Any, options: PipelineOptions, preview: str | nn.Module | None) -> Self:
        """Makes the backbone of a pipeline that is checked and placed."""


def picture_size(own: int, multiple: int, options: PipelineOptions) -> int:
    """The side of the picture in pixels: the model's ``own``, unless the options name another.

    Raises:
        ConfigError: unless it is a multiple of ``multiple``.
    """
    side = own if options.image_size is None else options.image_size
    if side < multiple or side % multiple:
        raise ConfigError(
            f"image_size must be a multiple of {multiple} pixels, got {side}", f"use {own}, the model's own"
        )
    return side


def load_pipeline(spec: PipelineSpec, load: Load, options: PipelineOptions) -> Any:
    """Loads a pipeline by hub id or from a folder, onto its device.

    Raises:
        WeightsError: when it cannot be had, is of another kind, is incomplete, or does not fit the GPU.
        ConfigError: for a device or precision that is not to be had.
    """
    import diffusers

    device = resolve_device(load.device)
    dtype = resolve_dtype(load.dtype, device, spec.auto_dtype)
    name = load.name_or_path or spec.default_id
    pipeline_class = getattr(diffusers, spec.kind)
    folder = find_pipeline(spec, pipeline_class, name, options.variant)
    check_folder(folder, spec, options.variant)
    skipped = dict.fromkeys(spec.unused)
    if "safety_checker" in skipped:
        skipped["requires_safety_checker"] = False  # type: ignore[assignment]
    try:
        with quiet_loading():
            pipe = pipeline_class.from_pretrained(
                folder, variant=options.variant, local_files_only=True, **{dtype_keyword(): dtype}, **skipped
            )
    except Exception as error:
        raise WeightsError(
            f"{name} in {folder} does not load as {spec.kind}: {in_a_line(error)}", again(folder / "*")
        ) from error
    place(pipe, name, device, options.offload)
    return pipe


def find_pipeline(spec: PipelineSpec, pipeline_class: Any, name: str, variant: str | None) -> Path:
    """The folder of a pipeline: ``name`` itself, or its snapshot in the hub's cache, downloaded when it is not there.

    Raises:
        WeightsError: for a folder that does not exist, a single file, or an id that cannot be had or is of another
            kind (seen before the weights are downloaded).
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise WeightsError(
            f"{path} is one file, and the {spec.backbone} backbone loads pipeline folders",
            f"load it with diffusers.{spec.kind}.from_single_file, and pass that to the backbone's from_pipeline",
        )
    if looks_like_path(name):
        raise WeightsError(
            f"no such folder: {path} (for the {spec.backbone} backbone)",
            f"give a pipeline folder, or a hub id such as {spec.default_id}; {WORKS_OFFLINE}",
        )
    check_kind(hub_file(name, INDEX, NEEDED), spec)
    try:
        return Path(pipeline_class.download(name, variant=variant, **dict.fromkeys(spec.unused)))
    except Exception as error:
        raise unavailable(name, NEEDED, reason_of(error)) from error


def check_kind(index: Path, spec: PipelineSpec) -> dict[str, Any]:
    """Reads ``model_index.json`` and checks that it describes a pipeline of the wanted class.

    Raises:
        WeightsError: naming the class found, the one expected, and the backbone that would take it.
    """
    entries = read_json(index)
    found = entries.get("_class_name")
    if found == spec.kind:
        return entries
    other = BACKBONE_OF.get(str(found))
    hint = f"use backbone={other}" if other else f"give a checkpoint such as {spec.default_id}"
    raise WeightsError(
        f"{index.parent} holds a {found}, and the {spec.backbone} backbone needs a {spec.kind}",
        f"{hint}; {WORKS_OFFLINE}",
    )


def check_folder(folder: Path, spec: PipelineSpec, variant: str | None = None) -> None:
    """Checks that a folder holds a whole pipeline of the wanted class, without loading it.

    Raises:
        WeightsError: naming what is missing, of another kind, or cut off.
    """
    entries = check_kind(file_in(folder, INDEX), spec)
    for component, entry in entries.items():
        if component in spec.unused or not (isinstance(entry, list) and len(entry) == 2 and entry[0]):
            continue
        check_component(folder / component, str(entry[1]), variant)


def check_component(folder: Path, kind: str, variant: str | None) -> None:
    """Checks one component's folder: there, with its weights of the wanted variant, none of them cut off.

    Raises:
        WeightsError: as said.
    """
    if not folder.is_dir():
        raise WeightsError(f"{folder} is missing: no {kind}", again(folder / "*"))
    if not (folder / "config.json").is_file():
        if kind.endswith(("Model", "WithProjection")) or kind.startswith(("UNet", "Autoencoder", "FluxTransformer")):
            raise WeightsError(f"{folder} holds no config.json of a {kind}", again(folder / "config.json"))
        return  # tokenizers, schedulers, image processors
    for index in folder.glob("*.index*.json"):
        if variant_of(index) != variant:
            continue  # its shards are not read, and a download of one variant leaves them out
        for shard in sorted(set(read_json(index).get("weight_map", {}).values())):
            if not (folder / shard).is_file():
                raise WeightsError(f"{folder / shard} is missing, {index.name} lists it", again(folder / shard))
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    chosen = [path for path in weights if variant_of(path) == variant]
    if not chosen:
        others = sorted({found for path in weights if (found := variant_of(path))})
        wanted = f"{variant} weights" if variant else "weights"
        beside = f", only the variant {' and '.join(others)}" if others else ""
        remedy = f"set backbone_options.variant={others[0]}" if others else again(folder / "*")
        if not others and weights:
            remedy = f"leave backbone_options.variant out: it holds {weights[0].name}; or {remedy}"
        raise WeightsError(f"{folder} holds no {wanted} of its {kind}{beside}", remedy)
    for path in chosen:
        if path.suffix == ".safetensors":
            check_safetensors(path)


def set_up(pipe: Any, options: PipelineOptions, denoiser: Any) -> Any:
    """Applies the options that change how a pipeline computes.

    Returns:
        What to call in the denoiser's place: its compiled form, or ``None`` for the denoiser itself.
    """
    if options.vae_tiling:
        pipe.vae.enable_tiling()
    if options.attention_slicing:
        slices = "auto" if options.attention_slicing is True else options.attention_slicing
        pipe.enable_attention_slicing(slices)
    if options.channels_last:
        denoiser.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if not options.compile:
        return None
    return compiled(denoiser, options.compile, pipe._execution_device)

"""Loading whole diffusers pipelines: found, checked for kind and completeness, placed, and set up as asked.

What a folder lacks is said before anything is loaded, with the file's name: diffusers would fail deep inside a
component with a message about tensors, after minutes of reading the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from addiffusion_env.backbones.base import Load
from addiffusion_env.backbones.devices import dtype_keyword, resolve_device, resolve_dtype
from addiffusion_env.backbones.hub import (
    WORKS_OFFLINE,
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
from addiffusion_env.backbones.quiet import quiet_loading
from addiffusion_env.errors import WeightsError

INDEX = "model_index.json"
NEEDED = (INDEX, "*/*")
"""What is asked of a pipeline's repository: its components; at the top lie single files of the same weights."""

BACKBONE_OF = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd35",
    "FluxPipeline": "flux",
    "Flux2KleinPipeline": "flux2_klein",
    "ZImagePipeline": "z_image",
    "QwenImagePipeline": "qwen_image",
}
"""Which backbone a pipeline's class belongs to."""


@dataclass(frozen=True)
class PipelineSpec:
    """Which checkpoint a backbone is made of.

    Attributes:
        backbone: the registry name.
        kind: name of the pipeline's class in diffusers, as ``model_index.json`` has it.
        default_id: hub id that is loaded unless another is named.
        unused: components that are neither downloaded nor loaded.
        auto_dtype: precision on a GPU unless one is named: the one that the checkpoint is published for.
    """

    backbone: str
    kind: str
    default_id: str
    unused: tuple[str, ...] = ()
    auto_dtype: str = "float16"


def load_pipeline(spec: PipelineSpec, load: Load, offload: str = "none", variant: str | None = None) -> Any:
    """Loads a pipeline by hub id or from a folder, onto its device.

    Args:
        spec: which class, and what of it.
        load: which weights, where and how precise; its options are not read.
        offload: see :class:`backbones.pipeline_options.PipelineOptions`.
        variant: of the weight files (``"fp16"``), for repositories that have more than one.

    Raises:
        WeightsError: when it cannot be had, is of another kind, is incomplete, or does not fit the GPU.
        ConfigError: for a device or precision that is not to be had.
    """
    import diffusers

    device = resolve_device(load.device)
    dtype = resolve_dtype(load.dtype, device, spec.auto_dtype)
    name = load.name_or_path or spec.default_id
    pipeline_class = getattr(diffusers, spec.kind)
    folder = find_pipeline(spec, pipeline_class, name, variant)
    check_folder(folder, spec, variant)
    skipped = dict.fromkeys(spec.unused)
    if "safety_checker" in skipped:
        skipped["requires_safety_checker"] = False  # type: ignore[assignment]
    try:
        with quiet_loading():
            pipe = pipeline_class.from_pretrained(
                folder, variant=variant, local_files_only=True, **{dtype_keyword(): dtype}, **skipped
            )
    except Exception as error:
        raise WeightsError(
            f"{name} in {folder} does not load as {spec.kind}: {in_a_line(error)}", again(folder / "*")
        ) from error
    place(pipe, name, device, offload)
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


def backbone_in(folder: Path) -> str | None:
    """The name of the backbone for a folder in diffusers' format; ``None`` for a folder of another kind."""
    return "diffusers" if (folder / INDEX).is_file() else None


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

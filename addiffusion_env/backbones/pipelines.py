"""Loads diffusers pipelines by hub id, from a folder, or from a single checkpoint file, onto their device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from addiffusion_env.backbones.base import Load
from addiffusion_env.backbones.devices import quiet_loading, resolve_device, resolve_dtype
from addiffusion_env.backbones.memory import place
from addiffusion_env.errors import ConfigError, WeightsError
from addiffusion_env.files import (
    WORKS_OFFLINE,
    again,
    file_in,
    hub_file,
    in_a_line,
    looks_like_path,
    read_json,
    reason_of,
    unavailable,
)

INDEX = "model_index.json"
NEEDED = (INDEX, "*/*")
"""Files to download from a pipeline's repository: its components, not the single-file copies at the top level."""
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".bin")

BACKBONE_OF = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd35",
    "FluxPipeline": "flux",
    "Flux2KleinPipeline": "flux2_klein",
    "ZImagePipeline": "z_image",
    "QwenImagePipeline": "qwen_image",
}
"""Pipeline class -> backbone."""


@dataclass(frozen=True)
class PipelineSpec:
    """The checkpoint of a backbone.

    Attributes:
        backbone: the registry name.
        kind: name of the pipeline's class in diffusers, as in ``model_index.json``.
        default_id: default hub id.
        unused: components that are neither downloaded nor loaded.
        auto_dtype: default precision on a GPU, the one that the checkpoint is published for.
    """

    backbone: str
    kind: str
    default_id: str
    unused: tuple[str, ...] = ()
    auto_dtype: str = "float16"


def load_pipeline(
    load: Load, variant: str | None = None, offload: str = "none", spec: PipelineSpec | None = None
) -> Any:
    """Loads a text-to-image pipeline onto its device.

    Args:
        load: ``name_or_path`` is a hub id, a folder in diffusers' layout or, without a spec, a single file; device and
            precision. Its options are not read.
        variant: of the weight files (``"fp16"``), for repositories that have more than one.
        offload: see :class:`backbones.pipeline_options.PipelineOptions`.
        spec: the required class and the components to load; ``None`` for any class, which
            ``AutoPipelineForText2Image`` determines if it supports the checkpoint.

    Raises:
        ConfigError: when no model is named, or a device or precision is not available.
        WeightsError: when it is not available, of a different class, incomplete, or too large for the GPU.
    """
    name = load.name_or_path or (spec.default_id if spec else None)
    if name is None:
        raise ConfigError(
            "backbone=diffusers needs a model and none was named",
            "give name_or_path= (a hub id, a folder or a .safetensors file), or pipe= with a loaded pipeline; to "
            "AdaptivePipeline.from_pretrained either as backbone=",
        )
    device = resolve_device(load.device)
    settings = {"dtype": resolve_dtype(load.dtype, device, spec.auto_dtype if spec else "bfloat16")}
    path = Path(name).expanduser()
    if path.is_file() and spec is None:
        pipe = _from_file(path, settings)
    else:
        pipe = _from_folder(_folder(name, path, variant, spec), name, {"variant": variant, **settings}, spec)
    place(pipe, name, device, offload)
    return pipe


def backbone_in(folder: Path) -> str | None:
    """The name of the backbone for a folder in diffusers' format; ``None`` for other folders."""
    return "diffusers" if (folder / INDEX).is_file() else None


def _folder(name: str, path: Path, variant: str | None, spec: PipelineSpec | None) -> Path:
    """``path``, or the hub's snapshot of ``name``, downloaded when needed; its class is checked before the weights."""
    from diffusers import DiffusionPipeline

    if path.is_dir():
        _check_kind(file_in(path, INDEX), spec)
        return path
    if path.is_file():
        assert spec is not None
        raise WeightsError(
            f"{path} is one file, and the {spec.backbone} backbone loads pipeline folders",
            f"load it with diffusers.{spec.kind}.from_single_file, and pass that to the backbone's from_pipeline",
        )
    if looks_like_path(name):
        example = f"a hub id such as {spec.default_id}" if spec else "a single file, or a hub id"
        raise WeightsError(f"no such file or folder: {path}", f"give a pipeline's folder, {example}; {WORKS_OFFLINE}")
    _check_kind(hub_file(name, INDEX, NEEDED), spec)
    try:
        return Path(DiffusionPipeline.download(name, variant=variant, **_skipped(spec)))
    except Exception as error:
        raise unavailable(name, NEEDED, reason_of(error)) from error


def _check_kind(index: Path, spec: PipelineSpec | None) -> None:
    found = read_json(index).get("_class_name")
    if spec is None or found == spec.kind:
        return
    other = BACKBONE_OF.get(str(found))
    hint = f"use backbone={other}" if other else f"give a checkpoint such as {spec.default_id}"
    raise WeightsError(
        f"{index.parent} holds a {found}, and the {spec.backbone} backbone needs a {spec.kind}",
        f"{hint}; {WORKS_OFFLINE}",
    )


def _skipped(spec: PipelineSpec | None) -> dict[str, Any]:
    skipped: dict[str, Any] = dict.fromkeys(spec.unused) if spec else {}
    return {**skipped, "requires_safety_checker": False} if "safety_checker" in skipped else skipped


def _from_folder(folder: Path, name: str, settings: dict[str, Any], spec: PipelineSpec | None) -> Any:
    import diffusers

    index = read_json(folder / INDEX)
    for component, entry in index.items():  # transformers creates a tokenizer even if its folder is missing
        used = isinstance(entry, list) and len(entry) == 2 and entry[0] and component not in _skipped(spec)
        if used and not (folder / component).is_dir():
            raise WeightsError(f"{folder / component} is missing: no {entry[1]}", again(folder / component / "*"))
    kind = getattr(diffusers, spec.kind) if spec else diffusers.AutoPipelineForText2Image
    settings = {**settings, "local_files_only": True}
    try:
        with quiet_loading():
            try:
                return kind.from_pretrained(folder, **settings, **_skipped(spec))
            except ValueError as error:
                # AutoPipeline does not list every text-to-image pipeline.
                if spec or "AutoPipeline" not in str(error):
                    raise
                return diffusers.DiffusionPipeline.from_pretrained(folder, **settings)
    except Exception as error:
        damaged = next(filter(_is_damaged, sorted(folder.rglob("*.safetensors"))), None)
        cause = f"{damaged or name} is damaged" if damaged else f"{name} in {folder} does not load"
        cause = f"{cause}, as {index.get('_class_name')}: {in_a_line(error)}"
        variants = sorted({path.name.split(".")[1].split("-")[0] for path in folder.glob("*/*.*.safetensors")})
        other = f"set backbone_options.variant={variants[0]}" if variants else "leave backbone_options.variant out"
        chosen = settings.get("variant")
        hint = f"{other}; or " if not damaged and bool(chosen) != bool(variants) else ""
        raise WeightsError(cause, hint + again(damaged or folder / "*")) from error


def _is_damaged(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            return False
    except SafetensorError:
        return True


def _from_file(path: Path, settings: dict[str, Any]) -> Any:
    import diffusers
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

    if path.suffix not in SINGLE_FILES:
        raise WeightsError(
            f"{path} is not a checkpoint: its suffix is {path.suffix or 'empty'}",
            f"give one of {', '.join(SINGLE_FILES)}, or a pipeline's folder",
        )
    by_hand = f"load it yourself, Pipeline.from_single_file({path.name!r}, config=...), and pass pipe="
    try:
        with quiet_loading():
            checkpoint = load_single_file_checkpoint(str(path))
            config = fetch_diffusers_config(checkpoint)["pretrained_model_name_or_path"]
    except Exception as error:
        raise WeightsError(f"{path} is not a checkpoint that diffusers knows: {in_a_line(error)}", by_hand) from error
    kind = str(read_json(hub_file(config, INDEX)).get("_class_name"))
    try:
        with quiet_loading():
            return getattr(diffusers, kind).from_single_file(str(path), config=config, **settings)
    except Exception as error:
        raise WeightsError(f"{path} does not load as {kind}: {in_a_line(error)}", by_hand) from error

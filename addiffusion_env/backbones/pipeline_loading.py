"""Loading any diffusers pipeline: by hub id, from a folder, or from a single checkpoint file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from addiffusion_env.backbones.base import Load
from addiffusion_env.backbones.devices import dtype_keyword, resolve_device, resolve_dtype
from addiffusion_env.backbones.hub import (
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
from addiffusion_env.backbones.memory import place
from addiffusion_env.backbones.pipelines import INDEX
from addiffusion_env.backbones.quiet import quiet_loading
from addiffusion_env.errors import ConfigError, WeightsError

SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".bin")


def load_any_pipeline(load: Load, variant: str | None = None, offload: str = "none") -> Any:
    """Loads a text-to-image pipeline; ``AutoPipelineForText2Image`` decides its class where it knows the checkpoint's.

    Args:
        load: ``name_or_path`` is a hub id, a folder in diffusers' layout or a single file; device and precision.
        variant: of the weight files (``"fp16"``).
        offload: ``none``; ``model`` keeps one component on the GPU at a time; ``sequential`` one layer.

    Raises:
        ConfigError: when nothing is named, or a device or precision is not to be had.
        WeightsError: when it cannot be had or does not load, with the reason.
    """
    if load.name_or_path is None:
        raise ConfigError(
            "backbone=diffusers needs a model and none was named",
            "give name_or_path= (a hub id, a folder or a .safetensors file), or pipe= with a loaded pipeline",
        )
    name = load.name_or_path
    device = resolve_device(load.device)
    dtype = resolve_dtype(load.dtype, device, "bfloat16")
    path = Path(name).expanduser()
    if path.is_file():
        pipe = _from_file(path, dtype)
    else:
        pipe = _from_folder(_folder(name, path, variant), name, dtype, variant)
    place(pipe, name, device, offload)
    return pipe


def _folder(name: str, path: Path, variant: str | None) -> Path:
    from diffusers import DiffusionPipeline

    if path.is_dir():
        file_in(path, INDEX)
        return path
    if looks_like_path(name):
        raise WeightsError(
            f"no such file or folder: {path}", f"give a pipeline's folder, a single file, or a hub id; {WORKS_OFFLINE}"
        )
    hub_file(name, INDEX)
    try:
        return Path(DiffusionPipeline.download(name, variant=variant))
    except Exception as error:
        raise unavailable(name, [], reason_of(error)) from error


def _from_folder(folder: Path, name: str, dtype: Any, variant: str | None) -> Any:
    from diffusers import AutoPipelineForText2Image, DiffusionPipeline

    kind = str(read_json(folder / INDEX).get("_class_name"))
    settings = {"variant": variant, "local_files_only": True, dtype_keyword(): dtype}
    try:
        with quiet_loading():
            try:
                return AutoPipelineForText2Image.from_pretrained(folder, **settings)
            except ValueError as error:
                # AutoPipeline lists not every text-to-image pipeline.
                if "AutoPipeline" not in str(error):
                    raise
                return DiffusionPipeline.from_pretrained(folder, **settings)
    except Exception as error:
        raise WeightsError(
            f"{name} in {folder} does not load as {kind}: {in_a_line(error)}", again(folder / "*")
        ) from error


def _from_file(path: Path, dtype: Any) -> Any:
    import diffusers
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

    if path.suffix not in SINGLE_FILES:
        raise WeightsError(
            f"{path} is no checkpoint: its name ends in {path.suffix or 'nothing'}",
            f"give one of {', '.join(SINGLE_FILES)}, or a pipeline's folder",
        )
    try:
        with quiet_loading():
            checkpoint = load_single_file_checkpoint(str(path))
            config = fetch_diffusers_config(checkpoint)["pretrained_model_name_or_path"]
    except Exception as error:
        raise WeightsError(
            f"{path} is no checkpoint that diffusers knows: {in_a_line(error)}", _by_hand(path)
        ) from error
    index = hub_file(config, INDEX)
    kind = str(read_json(index).get("_class_name"))
    try:
        with quiet_loading():
            return getattr(diffusers, kind).from_single_file(str(path), config=config, **{dtype_keyword(): dtype})
    except Exception as error:
        raise WeightsError(f"{path} does not load as {kind}: {in_a_line(error)}", _by_hand(path)) from error


def _by_hand(path: Path) -> str:
    return f"load it yourself, Pipeline.from_single_file({path.name!r}, config=...), and pass pipe="

"""Where weights come from: a local path, or the Hugging Face hub. One way to fail, which says what to do.

Everything that a scorer loads passes through here, so that "the weights are not there" reads the same for all of them
and "these are weights of something else" is never a silent random initialisation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from addiffusion_env.errors import WeightsError

WORKS_OFFLINE = "AdDiffusion-Emoji-v0 needs no download and works now"


def cache_folder() -> Path:
    """The hub's cache: ``HF_HUB_CACHE``, or ``~/.cache/huggingface/hub``."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def unavailable(repo_id: str, files: Sequence[str], reason: str, looked_in: Path | None = None) -> WeightsError:
    """The error for weights that are neither in the cache nor downloadable.

    Args:
        repo_id: hub id, for example ``"THUDM/ImageReward"``.
        files: the files wanted; empty for the whole repository.
        reason: what the attempt ended with, in a few words.
        looked_in: the cache that was searched; by default the hub's.
    """
    folder = looked_in or cache_folder() / f"models--{repo_id.replace('/', '--')}"
    command = " ".join(["hf download", repo_id, *files])
    return WeightsError(
        f"{repo_id} ({', '.join(files) or 'whole repository'}) is not in {folder} and cannot be fetched: {reason}",
        f"on a machine with network run `{command}`; {WORKS_OFFLINE}",
    )


def hub_file(repo_id: str, filename: str) -> Path:
    """The local path of one file of a hub repository, downloaded when it is not cached.

    Raises:
        WeightsError: naming the id, the cache that was searched and the command that fetches the file.
    """
    from huggingface_hub import hf_hub_download

    # A machine without network ends in a subclass of OSError or in the HTTP library's own error, by hub version.
    try:
        return Path(hf_hub_download(repo_id, filename))
    except Exception as error:
        raise unavailable(repo_id, [filename], type(error).__name__) from error


def hub_folder(repo_id: str, patterns: Sequence[str] = ()) -> Path:
    """The local snapshot of a hub repository, downloaded when it is not cached.

    Args:
        repo_id: hub id, for example ``"facebook/dinov2-small"``.
        patterns: file name patterns to fetch; empty for all files.

    Raises:
        WeightsError: as :func:`hub_file`.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(patterns) or None))
    except Exception as error:
        raise unavailable(repo_id, [], type(error).__name__) from error


def looks_like_path(name_or_path: str | Path) -> bool:
    """Whether ``name_or_path`` can only be a path: hub ids hold one slash at most and do not begin like one.

    >>> [looks_like_path(x) for x in ("facebook/dinov2-small", "gpt2", "./clip", "/data/clip", "a/b/c")]
    [False, False, True, True, True]
    """
    text = str(name_or_path)
    return isinstance(name_or_path, Path) or text.startswith((".", "~", "/", "\\")) or text.count("/") > 1


def folder_of(name_or_path: str | Path, patterns: Sequence[str] = ()) -> Path:
    """The local folder of a model: ``name_or_path`` itself when it is one, else its hub snapshot.

    Raises:
        WeightsError: when it is a path and no such folder exists, or a hub id that cannot be had.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if looks_like_path(name_or_path):
        raise WeightsError(f"no such folder: {path}", "give a model folder or a hub id of the form 'owner/name'")
    return hub_folder(str(name_or_path), patterns)


def file_in(folder: Path, *names: str) -> Path:
    """The first of ``names`` that exists in ``folder``.

    Raises:
        WeightsError: when none does; the folder's files are listed.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(os.listdir(folder))[:8]) if folder.is_dir() else "no such folder"
    raise WeightsError(f"{folder} holds none of {', '.join(names)} (it holds: {found})", "point to the model's folder")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        WeightsError: when the file is missing or is not one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}", "download the file again") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds a {type(value).__name__}, expected a JSON object", "check which file it is")
    return value


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads a state dict from ``.safetensors`` or from a torch file (bare, or wrapped in ``"state_dict"``).

    Torch files are read with ``weights_only=True``: nothing in them is executed.

    Raises:
        WeightsError: for a missing, truncated or foreign file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"no such weights file: {path}", f"check the path; {WORKS_OFFLINE}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"cannot read {path} as weights: {error}", "download the file again") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict (a mapping of names to tensors)", "check which file it is")
    return dict(state)


def some(names: Sequence[str], count: int = 3) -> str:
    """The first few of ``names`` and how many more there are.

    >>> some(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    listed = ", ".join(list(names)[:count])
    return f"{listed} and {len(names) - count} more" if len(names) > count else listed


def load_strict(
    module: nn.Module, state: Mapping[str, torch.Tensor], where: str, ignore: Callable[[str], bool] = lambda name: False
) -> None:
    """Loads ``state`` into ``module``; every parameter must be there, in its shape, and nothing foreign.

    Args:
        module: filled in place.
        state: names as in ``module.state_dict()``.
        where: the file, for messages.
        ignore: says of an unexpected name whether it may be dropped.

    Raises:
        WeightsError: naming some of the names that are missing, foreign or of another shape.
    """
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    foreign = sorted(name for name in state.keys() - wanted.keys() if not ignore(name))
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    parts = {"missing": missing, "unexpected": foreign, "of another shape": shapes}
    wrong = "; ".join(f"{kind}: {some(names)}" for kind, names in parts.items() if names)
    if wrong:
        raise WeightsError(f"{where} does not fit {type(module).__name__}: {wrong}", "check which model the file is of")
    module.load_state_dict({name: state[name] for name in wanted})


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keeps transformers from drawing a bar for every small model that an environment loads."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_transformers(model_class: Any, folder: Path, model_type: str) -> Any:
    """Loads a transformers model from a local folder, in evaluation mode, float32, without gradients.

    ``from_pretrained`` fills what a checkpoint lacks with random numbers and only warns; here that is an error.

    Args:
        model_class: the transformers class.
        folder: holds ``config.json`` and the weights.
        model_type: what ``config.json`` must call itself.

    Raises:
        WeightsError: for a folder of another kind of model, or with weights missing.
    """
    found = read_json(file_in(folder, "config.json")).get("model_type")
    if found != model_type:
        raise WeightsError(
            f"{folder} holds a model of type {found!r}, expected {model_type!r}", "point to the right folder"
        )
    file_in(folder, "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
    try:
        with no_progress_bar():
            model, info = model_class.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    except Exception as error:
        raise WeightsError(f"cannot load {folder} as {model_class.__name__}: {error}", "download it again") from error
    lacking = sorted(str(name) for name in [*info["missing_keys"], *info["mismatched_keys"]])
    if lacking:
        raise WeightsError(
            f"{folder} lacks weights of {model_class.__name__}: {some(lacking)}", "check which model the folder is of"
        )
    return model.float().eval().requires_grad_(False)

"""Reading weights into scorers: whole or not at all, so that foreign weights are never a silent random initialisation.

Where files come from: :mod:`addiffusion_env.hub`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from addiffusion_env.backbones.quiet import quiet_loading
from addiffusion_env.errors import WeightsError
from addiffusion_env.hub import WORKS_OFFLINE, again, file_in, in_a_line, read_json

IMAGE_REWARD_REPO, BERT_REPO = "THUDM/ImageReward", "bert-base-uncased"
"""Hub ids of ImageReward's weights and of the tokenizer that it reads prompts by."""


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
        raise WeightsError(f"cannot read {path} as weights: {in_a_line(error)}", again(path)) from error
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
        with quiet_loading():
            model, info = model_class.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    except Exception as error:
        raise WeightsError(
            f"cannot load {folder} as {model_class.__name__}: {in_a_line(error)}", again(folder / "*")
        ) from error
    lacking = sorted(str(name) for name in [*info["missing_keys"], *info["mismatched_keys"]])
    if lacking:
        raise WeightsError(
            f"{folder} lacks weights of {model_class.__name__}: {some(lacking)}", "check which model the folder is of"
        )
    return model.float().eval().requires_grad_(False)

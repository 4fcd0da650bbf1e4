"""Checkpoints: written whole or not at all, found again, refused when they belong to another configuration."""

from __future__ import annotations

import io
import os
import random
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecMonitor

from addiffusion_env.agents.factory import env_state, load_env_state
from addiffusion_env.errors import ResumeError, RunFolderError

KEEP = 2
MODEL, STATE = "model.zip", "state.pt"


def rng_state() -> dict[str, Any]:
    """Torch's (CUDA's too), NumPy's and Python's global generators, as plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), gauss_next],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restores :func:`rng_state`."""
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


class Snapshot:
    """A checkpoint in memory: what training was at a roll-out's start.

    Args:
        model: the agent between an update and the next roll-out.
        env: its environments.
        episodes: plain facts of the last episodes, for the log.
    """

    def __init__(self, model: BaseAlgorithm, env: VecMonitor, episodes: Sequence[Mapping[str, Any]] = ()) -> None:
        self.step = model.num_timesteps
        buffer = io.BytesIO()
        model.save(buffer)
        self.model = buffer.getvalue()
        self.state = {"env": env_state(env), "rng": rng_state(), "step": self.step, "episodes": list(episodes)}

    def write(self, folder: Path) -> Path:
        """Writes ``folder/step_N`` under another name first, then renames: a killed process leaves no half.

        Raises:
            RunFolderError: when it cannot be written; earlier checkpoints are untouched.
        """
        target = folder / f"step_{self.step:09d}"
        if target.exists():
            return target
        temporary = folder / f".{target.name}.{os.getpid()}"
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            _write(temporary / MODEL, self.model)
            torch.save(self.state, temporary / STATE)
            _sync(temporary / STATE)
            os.replace(temporary, target)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise RunFolderError(
                f"cannot write checkpoint {target}: {error}", "free space or choose another run_dir"
            ) from error
        for old in checkpoints(folder)[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)
        return target


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    _sync(path)


def _sync(path: Path) -> None:
    with path.open("r+b") as file:  # Windows flushes only what was opened for writing
        os.fsync(file.fileno())


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir()) if folder.is_dir() else []


def load_latest(
    algorithm: type[BaseAlgorithm], folder: Path, env: VecMonitor, **custom: Any
) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
    """Loads the newest readable checkpoint and puts the environments where they were.

    A damaged one is skipped with a warning and the one before is used. Returns ``None`` when there is none.

    Raises:
        ResumeError: when checkpoints are there and none can be read.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            state = torch.load(path / STATE, weights_only=True)
            # force_reset=False keeps the last observation: the roll-out goes on where it was.
            model = algorithm.load(path / MODEL, env=env, force_reset=False, **custom)
        except Exception as error:  # whatever a truncated zip or tensor file raises
            warnings.warn(
                f"checkpoint {path} cannot be read ({type(error).__name__}: {error}); trying the one before",
                stacklevel=2,
            )
            continue
        load_env_state(env, state["env"])
        return model, state
    if found:
        raise ResumeError(
            f"none of the {len(found)} checkpoints in {folder} can be read", "delete the folder to start anew"
        )
    return None

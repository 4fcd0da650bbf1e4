"""Checkpoints: written atomically, read without running code, refused when they do not fit the run.

A checkpoint is one file of tensors, numbers and strings. SB3's own zip is not used: its loader unpickles Python
objects, so that a run folder from an untrusted source could run code on resume.
"""

from __future__ import annotations

import numbers
import random
import warnings
import zipfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecMonitor

from addiffusion_env.envs.slot import plain_copy
from addiffusion_env.errors import ResumeError, RunFolderError
from addiffusion_env.files import whole_file

KEEP = 2
"""Number of checkpoints kept per run: if the newest is damaged, the previous one is used."""

FORMAT = 1


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


def model_state(model: BaseAlgorithm) -> dict[str, Any]:
    """State of an agent between an update and the next rollout, without its settings, as plain values.

    Of a replay buffer only the place is kept, its transitions are added by :func:`buffer_state`.
    """
    last = model._last_obs
    assert isinstance(last, dict) and model._last_episode_starts is not None
    buffer = getattr(model, "replay_buffer", None)
    # SB3 writes the scalars of an update with those of the next rollout.
    waiting = {name: value for name, value in model.logger.name_to_value.items() if isinstance(value, numbers.Real)}
    excluded = model.logger.name_to_excluded
    return {
        "parameters": plain_copy(model.get_parameters()),  # of the policy and its optimiser
        "updates": model._n_updates,
        # DQN counts the steps since it copied its target network, its episodes and its exploration.
        "counters": {name: value for name, value in vars(model).items() if type(value) in (int, float)},
        "memory": plain_copy(getattr(model, "_last_lstm_states", None)),
        "sampling": model.action_space.np_random.bit_generator.state,  # of random actions
        "place": None if buffer is None else [buffer.pos, buffer.full],
        "logged": {name: float(value) for name, value in waiting.items() if "tensorboard" not in excluded[name]},
        "episodes": [{key: float(value) for key, value in info.items()} for info in model.ep_info_buffer or ()],
        "observation": {key: torch.from_numpy(value.copy()) for key, value in last.items()},
        "starts": torch.from_numpy(np.array(model._last_episode_starts, dtype=bool)),
    }


def load_model_state(model: BaseAlgorithm, state: Mapping[str, Any], step: int) -> None:
    """Restores :func:`model_state` on an agent of the same settings."""
    model.set_parameters(state["parameters"], exact_match=True, device=model.device)
    for name, value in state.get("counters", {}).items():  # none in files of earlier versions, nor the following
        setattr(model, name, value)
    model.num_timesteps = step
    model._n_updates = state["updates"]
    if state.get("memory") is not None:
        model._last_lstm_states = RNNStates(*_on(state["memory"], model.device))  # type: ignore[attr-defined]
    if "sampling" in state:
        model.action_space.np_random.bit_generator.state = state["sampling"]
    if state.get("place") is not None:
        load_buffer_state(model.replay_buffer, state["buffer"], *state["place"])  # type: ignore[attr-defined]
    model.ep_info_buffer = deque(state["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    # With a last observation SB3 does not reset the environments: the rollout continues where it was.
    model._last_obs = {key: value.numpy() for key, value in state["observation"].items()}
    model._last_episode_starts = state["starts"].numpy()


def env_state(env: VecMonitor) -> dict[str, Any]:
    """Everything an interrupted rollout needs from its environments, as plain tensors, numbers and strings."""
    lanes: Any = env.venv
    returns, lengths = env.episode_returns.tolist(), env.episode_lengths.tolist()
    return {"lanes": lanes.state_dict(), "returns": returns, "lengths": lengths}


def load_env_state(env: VecMonitor, state: Mapping[str, Any]) -> None:
    """Restores :func:`env_state` on an environment of the same size."""
    env.reset()
    lanes: Any = env.venv
    lanes.load_state_dict(state["lanes"])
    env.episode_returns[:] = state["returns"]
    env.episode_lengths[:] = state["lengths"]


def buffer_state(buffer: ReplayBuffer) -> dict[str, Any]:
    """The transitions in a replay buffer as tensors, which share its memory: to be written, not kept."""
    made: dict[str, Any] = {}
    for name, value in vars(buffer).items():
        if isinstance(value, np.ndarray):
            made[name] = torch.from_numpy(value[: buffer.size()])
        elif isinstance(value, dict) and all(isinstance(item, np.ndarray) for item in value.values()):
            made[name] = {key: torch.from_numpy(item[: buffer.size()]) for key, item in value.items()}
    return made


def load_buffer_state(buffer: ReplayBuffer, state: Mapping[str, Any], place: int, full: bool) -> None:
    """Restores :func:`buffer_state`, with the place of the next transition, and whether all places are filled."""
    for name, value in state.items():
        mine = getattr(buffer, name)
        for array, saved in [(mine[key], value[key]) for key in value] if isinstance(value, dict) else [(mine, value)]:
            array[: len(saved)] = saved.numpy()
    buffer.pos, buffer.full = place, full


def _on(value: Any, device: torch.device) -> Any:
    """Nested lists of tensors as tuples of tensors on a device."""
    return value.to(device) if isinstance(value, torch.Tensor) else tuple(_on(item, device) for item in value)


class Snapshot:
    """A checkpoint in memory: the state of training at the start of a rollout.

    Args:
        model: the agent between an update and the next rollout.
        env: its environments.
        episodes: plain values of the last episodes, for the log.
        prompt_ids: of all episodes so far.
    """

    def __init__(
        self,
        model: BaseAlgorithm,
        env: VecMonitor,
        episodes: Sequence[Mapping[str, Any]] = (),
        prompt_ids: Iterable[str] = (),
    ) -> None:
        self.step = model.num_timesteps
        # Read when it is written: those that follow this snapshot are collected again, into the same places.
        self.buffer: ReplayBuffer | None = getattr(model, "replay_buffer", None)
        self.state: dict[str, Any] = {
            "format": FORMAT,
            "step": self.step,
            "model": model_state(model),
            "env": env_state(env),
            "rng": rng_state(),
            "episodes": [dict(episode) for episode in episodes],
            "prompt_ids": sorted(prompt_ids),
        }

    def write(self, folder: Path) -> Path:
        """Writes ``folder/step_N.pt`` under another name, flushes it to the disk, then renames it.

        Raises:
            RunFolderError: when it cannot be written; earlier checkpoints are untouched.
        """
        target = folder / f"step_{self.step:09d}.pt"
        if target.exists():
            return target
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for part in folder.glob(".step_*.part"):  # of processes that were killed while they wrote
                part.unlink(missing_ok=True)
            agent = self.state["model"]
            if self.buffer is not None:
                agent = {**agent, "buffer": buffer_state(self.buffer)}
            with whole_file(target) as file:
                torch.save({**self.state, "model": agent}, file)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            raise RunFolderError(
                f"cannot write checkpoint {target}: {error}", "free space or choose another run_dir"
            ) from error
        for old in checkpoints(folder)[:-KEEP]:
            old.unlink(missing_ok=True)
        return target


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if path.is_file())


def read_latest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read; a damaged one is skipped with a warning and the one before is used.

    Reading executes no code from the file. Returns ``None`` when there is no checkpoint.

    Raises:
        ResumeError: when there are checkpoints and none of them can be read.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            return _read(path)
        except Exception as error:  # any error that a truncated zip or a forged tensor file raises
            warnings.warn(
                f"checkpoint {path} cannot be read ({type(error).__name__}: {error}); trying the previous one",
                stacklevel=2,
            )
    if found:
        raise ResumeError(
            f"none of the {len(found)} checkpoints in {folder} can be read", "delete the folder to start again"
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # torch.load does not verify the checksums
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["format"] != FORMAT:
        raise ValueError(f"format {state['format']}, this version reads {FORMAT}")
    return state


def restore(model: BaseAlgorithm, env: VecMonitor, state: Mapping[str, Any]) -> None:
    """Restores an agent, its environments and the global random generators from a checkpoint's state.

    Raises:
        ResumeError: when the checkpoint belongs to another agent or environment.
    """
    try:
        load_model_state(model, state["model"], state["step"])
        load_env_state(env, state["env"])
        set_rng_state(state["rng"])
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ResumeError(
            f"the checkpoint at decision {state.get('step')} does not fit this run: {error}",
            "resume with the settings and the version that wrote it, or choose another run_dir",
        ) from error

"""Vectorised environments for SB3, by name: ``lanes`` (one model), ``dummy`` and ``subproc`` (one pipeline per env)."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_env.envs.sb3_env import AdDiffusionVecEnv
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import ConfigError, check_settings, unknown
from addiffusion_env.plugins import load_plugins, loaded_plugins
from addiffusion_env.rewards import make_reward

KINDS = ("lanes", "dummy", "subproc")
ROLLOUTS = ("local", "ray")


def total_lanes(config: Mapping[str, Any]) -> int | str:
    """Lane count of a training configuration: ``rollouts.lanes``, or ``lanes`` where that is null; may be ``auto``."""
    lanes = config["rollouts"].get("lanes")
    return config["lanes"] if lanes is None else lanes


def make_rollouts(
    rollouts: Mapping[str, Any], vec_env: str, num_envs: int, seed: int, settings: Mapping[str, Any]
) -> VecMonitor:
    """Makes the environments of a training, in this process or in Ray actors.

    Args:
        rollouts: ``kind: local``, or ``kind: ray`` with the fields of :class:`.RayConfig`.
        vec_env: see :func:`make_vec_env`.
        num_envs: lanes or environments, in all.
        seed: environment i is seeded with ``seed + i``.
        settings: keyword arguments of the environment.

    Raises:
        UnknownNameError: for an unknown kind of rollouts.
        ConfigError: for bad settings, or a ``vec_env`` other than ``lanes`` with Ray, whose workers use lanes.
    """
    if rollouts["kind"] not in ROLLOUTS:
        raise unknown("rollouts.kind", str(rollouts["kind"]), ROLLOUTS)
    if rollouts["kind"] == "local":
        check_settings("rollouts=local has", rollouts, ("kind", "lanes"))
        return make_vec_env(vec_env, num_envs, seed, settings)
    if vec_env != "lanes":
        raise ConfigError(f"rollouts=ray holds lanes in every worker, got vec_env={vec_env}", "leave vec_env=lanes")
    from addiffusion_env.distributed.actor_pool import RayConfig
    from addiffusion_env.distributed.ray_vec_env import RayVecEnv

    return VecMonitor(RayVecEnv(num_envs, seed, RayConfig.of(rollouts), **settings))


def make_vec_env(kind: str, num_envs: int, seed: int, settings: Mapping[str, Any]) -> VecMonitor:
    """Makes a monitored vectorised environment.

    Args:
        kind: ``lanes`` batches all lanes through one model; ``dummy`` steps one env after the other in this process
            (the weights are shared, calls are not); ``subproc`` gives each env its own process and pipeline,
            and with ``device=auto`` spreads them over the CUDA devices.
        num_envs: lanes or environments.
        seed: environment i is seeded with ``seed + i``.
        settings: keyword arguments of the environment.

    Raises:
        UnknownNameError: for an unknown kind.
        ConfigError: for bad settings, checked here because SB3 forwards no error from a worker.
    """
    if kind not in KINDS:
        raise unknown("vec_env", kind, KINDS)
    make_reward(EnvSettings.of(**settings).reward)
    if num_envs < 1:
        raise ConfigError(f"num_envs must be at least 1, got {num_envs}", "use 8")
    env: VecEnv
    if kind == "lanes":
        env = AdDiffusionVecEnv(num_envs, seed=seed, **settings)
    else:
        makers = [partial(_make_env, dict(settings), index, loaded_plugins()) for index in range(num_envs)]
        # spawn: a forked child would inherit torch's thread pools in an undefined state.
        env = DummyVecEnv(makers) if kind == "dummy" else SubprocVecEnv(makers, start_method="spawn")  # type: ignore[arg-type]
        env.seed(seed)
    return VecMonitor(env)


def _make_env(settings: dict[str, Any], index: int, plugins: Sequence[str]) -> gym.Env:
    """One environment; SubprocVecEnv calls this in another process."""
    load_plugins(plugins)
    if multiprocessing.parent_process() is not None:
        # Ctrl-C reaches the whole process group; only the parent handles it, after its checkpoint.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if settings.get("device", "auto") == "auto" and torch.cuda.device_count() > 1:
            settings = {**settings, "device": f"cuda:{index % torch.cuda.device_count()}"}
    return AdDiffusionEnv(**settings)


def env_state(env: VecMonitor) -> dict[str, Any]:
    """Everything an interrupted rollout needs from its environments, as plain tensors, numbers and strings."""
    inner: Any = env.venv  # its lanes share a model and one state, or it holds one environment per lane
    lanes = inner.state_dict() if hasattr(inner, "state_dict") else inner.env_method("state_dict")
    return {"lanes": lanes, "returns": env.episode_returns.tolist(), "lengths": env.episode_lengths.tolist()}


def load_env_state(env: VecMonitor, state: Mapping[str, Any]) -> None:
    """Restores :func:`env_state` on an environment of the same kind and size."""
    env.reset()
    inner: Any = env.venv
    if hasattr(inner, "load_state_dict"):
        inner.load_state_dict(state["lanes"])
    else:
        for index, one in enumerate(state["lanes"]):
            inner.env_method("load_state_dict", one, indices=[index])
    env.episode_returns[:] = state["returns"]
    env.episode_lengths[:] = state["lengths"]

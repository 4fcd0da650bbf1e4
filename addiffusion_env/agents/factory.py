"""The environments of a training: lanes that share a model, in this process or in Ray actors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.vec_env import VecMonitor

from addiffusion_env.envs.sb3_env import AdDiffusionVecEnv
from addiffusion_env.errors import check_settings, unknown

ROLLOUTS = ("local", "ray")


def is_remote(rollouts: Mapping[str, Any]) -> bool:
    """Whether rollouts are in Ray actors.

    Args:
        rollouts: ``kind: local``, or ``kind: ray`` with the fields of :class:`.RayConfig`.

    Raises:
        UnknownNameError: for an unknown kind.
        ConfigError: for a setting that ``local`` does not have.
    """
    kind = rollouts.get("kind")
    if kind not in ROLLOUTS:
        raise unknown("rollouts.kind", str(kind), ROLLOUTS)
    if kind == "local":
        check_settings("rollouts=local has", rollouts, ("kind",))
    return bool(kind == "ray")


def make_rollouts(rollouts: Mapping[str, Any], num_envs: int, seed: int, settings: Mapping[str, Any]) -> VecMonitor:
    """Makes the monitored environments of a training.

    Args:
        rollouts: see :func:`is_remote`.
        num_envs: lanes, in all.
        seed: lane i is seeded with ``seed + i``.
        settings: keyword arguments of the environment.

    Raises:
        UnknownNameError: for an unknown kind of rollouts.
        ConfigError: for bad settings.
    """
    if not is_remote(rollouts):
        return VecMonitor(AdDiffusionVecEnv(num_envs, seed=seed, **settings))
    from addiffusion_env.distributed.actor_pool import RayConfig
    from addiffusion_env.distributed.ray_vec_env import RayVecEnv

    return VecMonitor(RayVecEnv(num_envs, seed, RayConfig.of(rollouts), **settings))

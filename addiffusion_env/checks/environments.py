"""Contracts of environment ids."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common import env_checker

from addiffusion_env.checks.base import require


def gymnasiums_checker_passes(env: gym.Env) -> None:
    """Gymnasium's check_env passes."""
    check_env(env, skip_render_check=True)


def sb3s_checker_passes(env: gym.Env) -> None:
    """Stable-Baselines3's check_env passes."""
    env_checker.check_env(env)


def an_episode_belongs_to_its_seed(env: gym.Env) -> None:
    """Two episodes of one seed are bitwise equal and end with an image."""
    ends = []
    for _ in range(2):
        env.reset(seed=7)
        end = env.step(1)
        ends.append(end if end[2] else env.step(1))  # with check_finished a second stop accepts the finished image
    (first, reward, terminated, _, info), (second, again, *_, more) = ends
    imaged = bool(terminated) and info["image"].any()
    require(imaged, "stop did not end the episode with an image", "exit early and decode")
    require(reward == again, f"the reward {reward} became {again}", "key noise by prompt and seed")
    require(np.array_equal(info["image"], more["image"]), "the image differs", "key noise by prompt and seed")
    for key, value in first.items():
        require(np.array_equal(value, second[key]), f"observation {key!r} differs", "key noise by prompt and seed")


ENVIRONMENT_CONTRACTS = (gymnasiums_checker_passes, sb3s_checker_passes, an_episode_belongs_to_its_seed)
"""Subject: an environment without wrappers."""

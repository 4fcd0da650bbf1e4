"""Stable-Baselines3's environment checker, for the command line."""

from __future__ import annotations

import gymnasium as gym
from stable_baselines3.common.env_checker import check_env


def check_for_sb3(env: gym.Env) -> None:
    """Runs SB3's checker; it raises or warns with what to fix."""
    check_env(env)

"""Gymnasium's and SB3's environment checkers pass for every registered id, on tiny models in the real classes."""

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from addiffusion_env import ENVIRONMENTS

HUB = {name: settings for name, settings in ENVIRONMENTS.items() if settings["backbone"] != "emoji"}


@pytest.mark.parametrize("name", HUB)
def test_both_checkers_pass(name, tiny, scorer_paths):
    model = tiny(HUB[name]["backbone"])
    env = gym.make(
        name,
        name_or_path=str(model.folder),
        device="cpu",
        backbone_options=model.options(),
        scorers=scorer_paths,
        prompts=["a photo of a red cup and a dog", "a dog left of a cup"],
        steps=2,
    ).unwrapped
    check_env(env, skip_render_check=True)
    sb3_check_env(env)

"""`AdDiffusion-Emoji-v2` is the process of `make train` and of the shipped policy."""

from dataclasses import fields
from pathlib import Path

import gymnasium as gym
import pytest
from omegaconf import OmegaConf

from addiffusion_env import ENVIRONMENTS
from addiffusion_env.agents.policy_file import find_policy, load_config
from addiffusion_env.config import compose_config
from addiffusion_env.engine.process import REFINE_PRESETS
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.evaluation.choices import make_samplers
from addiffusion_env.rewards import PRESETS, make_reward

CONFIGS = Path(__file__).parents[2] / "configs"
SETTINGS = EnvSettings.of(**ENVIRONMENTS["AdDiffusion-Emoji-v2"])


def trained(*overrides):
    return EnvSettings.of(**OmegaConf.to_container(compose_config(CONFIGS, "train", overrides).env, resolve=True))


@pytest.mark.parametrize("overrides", [(), ("experiment=emoji_full",), ("experiment=smoke",)])
def test_training_uses_the_settings_of_the_id(overrides):
    found = trained(*overrides)
    assert {item.name: getattr(found, item.name) for item in fields(found)} == vars(SETTINGS)


def test_the_shipped_policy_records_the_process_of_the_id(emoji):
    recorded = EnvSettings.of(**load_config(find_policy("emoji")).environment)
    for settings in (recorded, SETTINGS):
        assert settings.process(emoji.capabilities, "emoji").steps == 5
    assert recorded.process(emoji.capabilities, "emoji") == SETTINGS.process(emoji.capabilities, "emoji")
    assert make_reward(recorded.reward).identity == make_reward(SETTINGS.reward).identity
    assert recorded.cost_range() == SETTINGS.cost_range() == (0.002, 0.45)
    assert recorded.keys() == SETTINGS.keys()
    # All other fields that a setting could change are equal.
    resolved = {"steps", "spacing", "solver", "guidance_scale", "guidance_interval", "early_exit_steps", "decide_every"}
    resolved |= {"check_finished", "refine", "reward", "cost_per_nfe", "observation_keys"}
    others = [item.name for item in fields(SETTINGS) if item.name not in resolved]
    assert {name: getattr(recorded, name) for name in others} == {name: getattr(SETTINGS, name) for name in others}


def test_an_evaluation_without_a_policy_uses_the_process_of_the_id(emoji):
    config = OmegaConf.to_container(compose_config(CONFIGS, "eval"), resolve=True)
    _, settings = make_samplers(config)
    assert settings.process(emoji.capabilities, "emoji") == SETTINGS.process(emoji.capabilities, "emoji")


def test_make_gives_that_process():
    assert gym.make("AdDiffusion-Emoji-v2").unwrapped.settings == SETTINGS


def test_the_first_version_is_unchanged(emoji):
    old = EnvSettings.of(**ENVIRONMENTS["AdDiffusion-Emoji-v0"])
    process = old.process(emoji.capabilities, "emoji")
    assert (process.steps, process.spacing, process.solver, process.guidance_scale) == (8, "coarse_fine", "ddim", 4.0)
    assert (process.guidance_interval, process.decide_at, process.check_finished) == (None, None, False)
    assert process.refine == REFINE_PRESETS["resample"]
    assert old.cost_range() == (0.01, 0.01)
    assert old.keys() == ("clip", "timestep", "quality")
    assert make_reward(old.reward).terms == PRESETS["default"]
    bonus = PRESETS["default"]["terminal_bonus"]
    assert bonus.weight == 1.0 and bonus.settings == {"centre": 0.0, "width": 0.4}

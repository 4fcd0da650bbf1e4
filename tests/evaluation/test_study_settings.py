"""The study trains with the settings of the configuration."""

from pathlib import Path

from addiffusion_env.config import compose_config
from addiffusion_lab.study.__main__ import PPO

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_study_and_the_default_training_use_the_same_algorithm():
    assert compose_config(CONFIGS, "train", ["experiment=emoji_full"])["tabular"]["ppo"] == PPO

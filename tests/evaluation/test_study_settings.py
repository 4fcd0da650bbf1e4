"""The study trains what the configuration trains."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from addiffusion_lab.study.__main__ import ENVIRONMENT, PPO

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_study_and_the_default_training_mean_the_same_process():
    with initialize_config_dir(str(CONFIGS.resolve()), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", overrides=["experiment=emoji_full"]))
    assert {key: config["env"][key] for key in ENVIRONMENT} == ENVIRONMENT
    assert config["replay"]["ppo"] == PPO

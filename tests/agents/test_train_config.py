"""Keys of configs/train.yaml: a wrong value is refused by name before anything is loaded."""

from dataclasses import fields

import pytest
from omegaconf import OmegaConf
from stable_baselines3.common.vec_env import VecMonitor

import eval_sb3
import train_sb3
from addiffusion_env import AdDiffusionVecEnv
from addiffusion_env.agents.algorithms import check_algorithm, make_model
from addiffusion_env.agents.tabular_training import TabularConfig
from addiffusion_env.agents.training import TrainingConfig, algorithm_and_table
from addiffusion_env.config import compose_config
from addiffusion_env.envs.settings import EnvSettings, refine_config
from addiffusion_env.errors import ConfigError

FILE = OmegaConf.to_container(OmegaConf.load(train_sb3.CONFIGS / "train.yaml"))
CONFIG = {key: value for key, value in FILE.items() if key not in ("defaults", "hydra")} | {
    "rollouts": {"kind": "local"}
}


def test_it_has_the_keys_of_the_file_and_takes_its_values():
    assert {item.name for item in fields(TrainingConfig)} == set(CONFIG)
    assert TrainingConfig.of(CONFIG).seed == 0


@pytest.mark.parametrize(
    ("key", "value"), [("ppo", [1]), ("seed", -1), ("seed", 2**32), ("checkpoint_every", 0), ("resume", "yes")]
)
def test_a_wrong_value_is_refused_by_its_key(key, value):
    """The sentences are those of tests/test_settings.py."""
    with pytest.raises(ConfigError, match=f"^{key} must be "):
        TrainingConfig.of({**CONFIG, key: value})


@pytest.mark.parametrize("backbone", ["sd15", "flux", "qwen_image"])
def test_recipes_of_the_hub(backbone):
    """Prompts of training and of evaluation differ; the published design has a table on no backbone."""
    whole = compose_config(train_sb3.CONFIGS, "train", ["experiment=full", f"backbone={backbone}"])
    config = OmegaConf.to_container(whole, resolve=True)
    TrainingConfig.of(config)
    tabular, settings = TabularConfig.of(config["tabular"]), EnvSettings.of(**config["env"])
    assert tabular.calibrator is not None and tabular.attempts <= settings.refine["limit"] + 1
    assert settings.refine["return_to"] == settings.decide_at[0]
    splits = config["env"]["prompt_options"]["split"], config["report"]["prompt_options"]["split"]
    assert splits == ("train", "test")
    assert set(config["report"]) <= set(eval_sb3.defaults())
    given = ["experiment=claims", f"backbone={backbone}", f"run_dir={config['run_dir']}", "benchmark=drawbench"]
    claims = eval_sb3.own_settings(compose_config(eval_sb3.CONFIGS, "eval", given))
    assert (claims["policy"], claims["env"], claims["max_lanes"]) == (config["run_dir"], None, config["lanes"])
    assert {key: claims[key] for key in ("samplers", "judges", "hypotheses", "costs_per_nfe")} == {
        key: config["report"][key] for key in ("samplers", "judges", "hypotheses", "costs_per_nfe")
    }
    published = compose_config(train_sb3.CONFIGS, "train", ["experiment=as_published", f"backbone={backbone}"])
    old = OmegaConf.to_container(published, resolve=True)
    assert old["tabular"] is None and refine_config(old["env"]["refine"]).return_to is None
    assert EnvSettings.of(**old["env"]).guidance_interval is None
    with pytest.raises(ConfigError, match="nothing would be trained"):
        TrainingConfig.of({**old, "total_timesteps": 0})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ent_coef": "lots"}, "ent_coef of ppo must be float, got 'lots'"),
        ({"n_steps": 1.5}, r"n_steps of ppo must be int, got 1\.5"),
        ({"ent_coeff": 0.1}, "did you mean 'ent_coef'"),
        ({"seed": 3}, "ppo has no setting 'seed'"),
        ({"n_steps": 0}, "n_steps of ppo must be at least 1, got 0"),
        ({"n_epochs": 0}, "n_epochs of ppo must be at least 1, got 0"),
        ({"gamma": 1.5}, r"gamma of ppo must be from 0 to 1, got 1\.5"),
        ({"learning_rate": -0.1}, r"learning_rate of ppo must be at least 0, got -0\.1"),
    ],
)
def test_settings_of_the_algorithm_are_checked_by_its_signature(settings, words):
    with pytest.raises(ConfigError, match=words):
        check_algorithm("ppo", settings)


def test_what_sb3_refuses_is_told_as_a_configuration_error():
    env = VecMonitor(AdDiffusionVecEnv(1, steps=2))
    with pytest.raises(ConfigError, match=r"ppo refuses n_steps=4, batch_size=1: .*batch_size"):
        make_model("ppo", env, {"n_steps": 4, "batch_size": 1}, 0, "cpu")
    with pytest.raises(ConfigError, match=r"^unknown device 'gpu'"):
        make_model("ppo", env, {"n_steps": 4, "batch_size": 2}, 0, "gpu")


def test_a_batch_of_one_decision_is_refused_where_its_advantage_would_be_nan():
    lone = {"n_steps": 3, "batch_size": 8}
    with pytest.raises(ConfigError, match=r"n_steps \* lanes = 3 \* 3: .*\n  -> choose a batch_size that divides 9"):
        algorithm_and_table({**CONFIG, "ppo": lone, "lanes": 3})
    with pytest.raises(ConfigError, match="batch_size=1 of maskable_ppo leaves a batch of one decision"):
        algorithm_and_table({**CONFIG, "tabular": {"ppo": {"n_steps": 8, "batch_size": 1}}})
    with pytest.raises(ConfigError, match="batch_size=64 of maskable_ppo leaves"):  # the algorithm's own
        algorithm_and_table({**CONFIG, "ppo": {"n_steps": 13}, "lanes": 5})
    algorithm_and_table({**CONFIG, "ppo": lone, "lanes": 4})
    algorithm_and_table({**CONFIG, "ppo": {**lone, "normalize_advantage": False}, "lanes": 3})
    algorithm_and_table({**CONFIG, "algorithm": "ppo", "ppo": lone, "lanes": 3})  # SB3 normalizes no batch of one


def test_the_settings_that_ship_suit_their_algorithm():
    check_algorithm(CONFIG["algorithm"], CONFIG["ppo"])
    check_algorithm(CONFIG["algorithm"], compose_config(train_sb3.CONFIGS, "train")["tabular"]["ppo"])
    check_algorithm("ppo", {"learning_rate": lambda left: left, "policy_kwargs": {"net_arch": [8]}, "target_kl": None})


def test_a_table_needs_images():
    with pytest.raises(ConfigError, match=r"tabular\.images must be at least 1, got 0"):
        TabularConfig.of({"images": 0})


def test_a_key_of_an_earlier_version_is_refused():
    with pytest.raises(ConfigError, match="the key 'warm_start' no longer exists\n  -> leave it out"):
        TrainingConfig.of({**CONFIG, "warm_start": {"decisions": 10}})
    with pytest.raises(ConfigError, match=r"the key 'rollouts\.lanes' no longer exists\n  -> write lanes=VALUE"):
        TrainingConfig.of({**CONFIG, "rollouts": {"kind": "local", "lanes": 4}})

"""Training on a table: a problem whose optimum is known, what is logged, what a frontier is."""

import json

import numpy as np
import pytest
import torch

import train_sb3
from addiffusion_env.agents.recording import Recording
from addiffusion_env.agents.tabular_training import (
    TableWatch,
    TabularConfig,
    few_threads,
    greedy,
    learn_on_table,
    make_mdp,
    measured_frontier,
    summary,
)
from addiffusion_env.config import compose_config
from addiffusion_env.envs.settings import EnvSettings, load_backbone
from addiffusion_env.errors import ConfigError
from addiffusion_env.observations.features import Observer
from addiffusion_env.rewards import make_reward
from addiffusion_env.tabular.mdp import TabularMDP, Transitions
from addiffusion_env.tabular.outcomes import play_table, regret
from addiffusion_env.tabular.table import AttemptTable

SETTINGS = EnvSettings.of(
    steps=4,
    decide_at=[3],
    refine={"preset": "resample_keep_best", "limit": 4},
    check_finished=True,
    cost_per_nfe=[0.0, 0.05],
    reward={"terminal_bonus": 1.0, "nfe_cost": 1.0},
    observation_keys=["quality", "timestep", "cost_per_nfe", "attempts"],
)
PPO = {"n_steps": 16, "batch_size": 512, "n_epochs": 4, "learning_rate": 0.003, "gamma": 1.0, "ent_coef": 0.002}


def planted(images=256, attempts=5, seed=0):
    """Half of all attempts are good (preference 2) and half bad (-1); the preview at the first look tells which.

    An attempt costs 2 NFE to its first look and 2 more to its end. So the best that can be done at a low cost per NFE
    is to drop bad attempts at the first look: 4 NFE for the good one and 2 for each bad one before it.
    """
    rng = np.random.default_rng(seed)
    good = rng.random((images, attempts)) < 0.5
    worth = np.where(good, 2.0, -1.0)[:, :, None]
    preference = np.repeat(worth, 4, axis=2).astype(np.float32)
    preference[:, 1:, 3] = np.nan  # an early exit from the start is recorded for the first attempt alone
    nfe = np.broadcast_to(np.array([2.0, 4.0, 4.0, 4.0], np.float32), preference.shape).copy()
    nfe[:, 1:, 3] = np.nan
    empty = np.zeros((images, attempts, 4, 1), np.float32)
    return AttemptTable(
        prompts=("p",) * images,
        prompt_ids=tuple(f"p{i}" for i in range(images)),
        tasks=("t",) * images,
        constraints=np.ones(images),
        seeds=np.zeros(images),
        steps=(3,),
        log_snr=np.array([-1.0, 5.0, 5.0, 5.0]),
        start_log_snr=np.array(-3.0),
        clip_image=empty,
        clip_text=np.zeros((images, 1), np.float32),
        dino=empty,
        features=empty,
        clip_score=np.zeros_like(preference),
        preference=preference,
        change=np.zeros_like(preference),
        nfe=nfe,
        calls=2 * nfe,
        correct=np.repeat(good[:, :, None], 4, axis=2).astype(np.float32),
    ), good


def mdp_on(table):
    backbone = load_backbone(SETTINGS)
    transitions = Transitions.of(backbone, SETTINGS.process(backbone.capabilities, backbone.name))
    return TabularMDP(table, transitions, most=20.0, highest_cost_per_nfe=0.05, shown_limit=4)


@pytest.mark.slow
def test_ppo_finds_the_planted_optimum(tmp_path):
    table, _ = planted()
    mdp = mdp_on(table)
    learner = learn_on_table(mdp, SETTINGS, TabularConfig(total_timesteps=60_000, ppo=PPO), "maskable_ppo", 0, tmp_path)
    held_out, good = planted(seed=1)
    mdp = mdp_on(held_out)
    observer = Observer(1, SETTINGS.keys())
    outcomes = play_table(mdp, greedy(learner.policy), observer, 0.01)
    first = np.where(good.any(1), good.argmax(1), 4)  # bad attempts before the first good one
    np.testing.assert_allclose(outcomes.nfe.mean(), (4 + 2 * first).mean(), rtol=0.05)
    assert outcomes.correct.mean() > good.any(1).mean() - 0.02
    found = regret(held_out, outcomes, make_reward(SETTINGS.reward), 0.01)
    assert found.to_constant < -0.1 and found.to_oracle < 0.05
    history = json.loads((tmp_path / "table.json").read_text())
    assert history[-1]["regret_to_constant"] < history[0]["regret_to_constant"]
    assert history[-1]["decisions"] >= 60_000


def test_same_seed_same_policy(tmp_path):
    table, _ = planted(64)
    config = TabularConfig(lanes=32, total_timesteps=1024, ppo=PPO)  # two rollouts
    first, second = (learn_on_table(mdp_on(table), SETTINGS, config, "maskable_ppo", 3) for _ in range(2))
    for key, value in first.policy.state_dict().items():
        assert (value == second.policy.state_dict()[key]).all(), key


def test_only_a_small_network_is_held_to_one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for width, threads in ((64, 1), (1024, 2)):
            with few_threads(torch.nn.Linear(1024, width)):
                assert torch.get_num_threads() == threads
            assert torch.get_num_threads() == 2
        with pytest.raises(KeyboardInterrupt), few_threads(torch.nn.Linear(2, 2)):
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_frontier_never_rises_with_cost():
    table, _ = planted(64)
    config = TabularConfig(lanes=32, total_timesteps=512, ppo=PPO)
    learner = learn_on_table(mdp_on(table), SETTINGS, config, "maskable_ppo", 0)
    frontier = measured_frontier(learner.policy, mdp_on(table), SETTINGS)
    costs_per_nfe, spent = zip(*frontier, strict=True)
    assert list(costs_per_nfe) == sorted(costs_per_nfe) and list(spent) == sorted(spent, reverse=True)


def test_a_constant_policy_shows_as_constant():
    table, _ = planted(32)
    always = play_table(mdp_on(table), lambda seen, legal: np.where(legal[:, 0], 0, 1), Observer(1, ("quality",)), 0.0)
    told = summary(always)
    assert told["constant_share"] == 1.0 and told["pattern_entropy"] == 0.0 and told["nfe"] == 4.0
    found = regret(table, always, make_reward(SETTINGS.reward), 0.01)
    assert found.to_oracle > 0.5 and found.best_constant.startswith("best of")


def test_unknown_settings_are_refused():
    with pytest.raises(ConfigError, match="images"):
        TabularConfig.of({"image": 3})
    with pytest.raises(ConfigError, match=r"tabular\.watch_every has been removed\n  -> leave it out"):
        TabularConfig.of({"watch_every": 5})
    assert TableWatch(mdp_on(planted(4)[0]), SETTINGS).history == []


@pytest.mark.slow
def test_the_recipe_of_make_train_learns_with_every_seed(tmp_path):
    """Not only to accept every first image, which is the best constant behaviour at most costs."""
    config = compose_config(train_sb3.CONFIGS, "train")
    tabular = TabularConfig.of(config["tabular"])
    recording = Recording(config["env"], tabular, tmp_path, tabular.lanes)
    mdp = make_mdp(recording.table(), recording.settings)
    for seed in range(4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        learn_on_table(mdp, recording.settings, tabular, config["algorithm"], seed, folder)
        history = json.loads((folder / "table.json").read_text())
        assert history[-1]["regret_to_constant"] < -0.04, seed
        assert history[-1]["regret_to_oracle"] < 0.1, seed

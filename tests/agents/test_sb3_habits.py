"""What a user of Stable-Baselines3 does by habit: other algorithms, its callbacks, its monitor."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from addiffusion_env import AdDiffusionVecEnv
from addiffusion_env.agents.policy import AdDiffusionPolicy, KeyProjection, MaskableAdDiffusionPolicy
from addiffusion_env.errors import ConfigError, UnknownNameError

TINY = {"steps": 2, "refine": "resample_short"}
ON_POLICY = {"n_steps": 4, "batch_size": 8, "n_epochs": 1, "seed": 0}
OFF_POLICY = {"learning_starts": 4, "batch_size": 4, "buffer_size": 64, "train_freq": 2, "seed": 0}
ALGORITHMS = {
    "PPO": (PPO, AdDiffusionPolicy, ON_POLICY),
    "MaskablePPO": (MaskablePPO, MaskableAdDiffusionPolicy, ON_POLICY),
    "RecurrentPPO": (RecurrentPPO, "MultiInputLstmPolicy", {**ON_POLICY, "policy_kwargs": {"lstm_hidden_size": 8}}),
    "DQN": (DQN, "MultiInputPolicy", OFF_POLICY),
}


@pytest.fixture(scope="module")
def env():
    return AdDiffusionVecEnv(2, **TINY)


def weights(model):
    return torch.cat([value.detach().flatten() for value in model.policy.parameters()])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_learns_saves_and_loads(name, env, tmp_path):
    kind, policy, settings = ALGORITHMS[name]
    model = kind(policy, env, **settings)
    before = weights(model)
    model.learn(8)
    assert model.num_timesteps >= 8
    assert not torch.equal(before, weights(model)), "no parameter has moved"
    model.save(tmp_path / "model")
    again = kind.load(tmp_path / "model", env=env)
    observation = env.reset()
    ours, theirs = (found.predict(observation, deterministic=True)[0] for found in (model, again))
    np.testing.assert_array_equal(ours, theirs)
    assert set(ours.tolist()) <= {0, 1, 2}


def test_maskable_ppo_never_takes_an_illegal_action():
    strict = VecMonitor(AdDiffusionVecEnv(2, strict=True, steps=2, refine="off"))
    MaskablePPO(MaskableAdDiffusionPolicy, strict, **ON_POLICY).learn(8)  # strict: an illegal action would raise


def test_the_monitor_writes_returns_lengths_and_what_it_is_asked_for(tmp_path):
    monitored = VecMonitor(AdDiffusionVecEnv(2, **TINY), str(tmp_path / "log"), info_keywords=("nfe", "prompt"))
    monitored.reset()
    _, rewards, _, _ = monitored.step(np.array([0, 0]))
    _, more, dones, infos = monitored.step(np.array([1, 1]))
    assert dones.all()
    for index, info in enumerate(infos):
        assert info["episode"]["l"] == 2
        assert info["episode"]["r"] == pytest.approx(float(rewards[index] + more[index]), abs=1e-5)
        assert info["episode"]["nfe"] == info["nfe"] > 0
    monitored.close()
    assert len((tmp_path / "log.monitor.csv").read_text().splitlines()) == 2 + 2  # a comment, a head, two episodes


@pytest.mark.slow
@pytest.mark.parametrize(("callback", "name"), [(EvalCallback, "PPO"), (MaskableEvalCallback, "MaskablePPO")])
def test_evaluation_and_checkpoints_during_training(callback, name, env, tmp_path):
    kind, policy, settings = ALGORITHMS[name]
    held_out = VecMonitor(AdDiffusionVecEnv(2, seed=100, prompt_options={"split": "test"}, **TINY))
    evaluation = callback(
        held_out, eval_freq=4, n_eval_episodes=2, log_path=str(tmp_path), best_model_save_path=str(tmp_path), verbose=0
    )
    saving = CheckpointCallback(save_freq=4, save_path=str(tmp_path / "checkpoints"), name_prefix="ad")
    kind(policy, VecMonitor(env), **settings).learn(8, callback=[evaluation, saving])
    with np.load(tmp_path / "evaluations.npz") as found:
        assert found["timesteps"].tolist() == [8]
        assert found["results"].shape == (1, 2) and np.isfinite(found["results"]).all()
    assert (tmp_path / "best_model.zip").is_file()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["ad_8_steps.zip"]


@pytest.mark.slow
def test_a_checkpoint_goes_on_and_is_evaluated(env, tmp_path):
    model = PPO(AdDiffusionPolicy, env, **ON_POLICY)
    model.learn(8, callback=CheckpointCallback(save_freq=4, save_path=str(tmp_path)))
    again = PPO.load(tmp_path / "rl_model_8_steps", env=env)
    again.learn(8, reset_num_timesteps=False)
    assert again.num_timesteps == 16
    returns, lengths = evaluate_policy(again, VecMonitor(env), n_eval_episodes=3, return_episode_rewards=True)
    assert len(returns) == 3 and all(1 <= length <= 16 for length in lengths)


@pytest.mark.parametrize("wrapper", ["frame stack", "images"])
def test_the_policy_takes_boxes_of_any_shape(wrapper):
    scalar = gym.make("AdDiffusion-Emoji-v0", render_mode="rgb_array", **TINY)
    if wrapper == "frame stack":
        wrapped, shapes = gym.wrappers.FrameStackObservation(scalar, 2), {"clip": 512, "quality": 16, "timestep": 256}
    else:
        wrapped = gym.wrappers.AddRenderObservation(scalar, render_only=False)
        shapes = {"clip": 256, "pixels": 3 * 296 * 256, "quality": 8, "timestep": 128}
    model = PPO(AdDiffusionPolicy, wrapped, **{**ON_POLICY, "batch_size": 4})
    layers = model.policy.features_extractor.projections
    assert {key: layer[0].in_features for key, layer in layers.items()} == shapes
    assert model.learn(4).num_timesteps == 4
    assert torch.isfinite(weights(model)).all()


def test_the_policy_says_what_it_takes(env):
    flat = gym.wrappers.FlattenObservation(gym.make("AdDiffusion-Emoji-v0", **TINY))
    with pytest.raises(ConfigError, match=r"takes a Dict observation, got Box\(.*\n  -> use 'MlpPolicy'"):
        PPO(AdDiffusionPolicy, flat)
    assert PPO("MlpPolicy", flat, **{**ON_POLICY, "batch_size": 4}).learn(4).num_timesteps == 4
    with pytest.raises(UnknownNameError, match="unknown observation key 'clp'\n  -> did you mean 'clip'"):
        KeyProjection(env.observation_space, {"clp": 8})

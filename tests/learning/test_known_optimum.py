"""Learning on a problem with a known optimum: optimal stopping, with the observations of the environments."""

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from addiffusion_env.agents.algorithms import make_model
from addiffusion_env.agents.policy import AdDiffusionPolicy, MaskableAdDiffusionPolicy
from addiffusion_env.observations.features import Observer

CLIP = 8


class StopWhenGood(gym.Env):
    """The quality is drawn independently at each step: stopping pays it, continuing costs 0.1, refining 0.5.

    There are at most six steps. The optimal policy stops at the first quality above a threshold; stopping at once
    returns 0 on average, never stopping -0.6.
    """

    observation_space = Observer(CLIP).space
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 6
        return self._observe(), {}

    def _observe(self):
        self.quality = float(self.np_random.uniform(-1, 1))
        observation = {key: np.zeros(box.shape, np.float32) for key, box in self.observation_space.spaces.items()}
        observation["quality"][2] = self.quality
        observation["clip"][:] = self.np_random.uniform(-1, 1, 2 * CLIP)
        return observation

    def step(self, action):
        self.left -= 1
        reward = {0: -0.1, 1: self.quality, 2: -0.5}[int(action)]
        return self._observe(), reward, action == 1 or self.left == 0, False, {}

    def action_masks(self):
        return np.array([True, True, True])


def play(model, episodes=200):
    env, total, taken = StopWhenGood(), 0.0, []
    observation, _ = env.reset(seed=1)
    for _ in range(episodes):
        done = False
        while not done:
            action, _ = model.predict(observation, deterministic=True)
            taken.append((int(action), float(observation["quality"][2])))
            observation, reward, done, _, _ = env.step(int(action))
            total += reward
        observation, _ = env.reset()
    return total / episodes, taken


@pytest.mark.parametrize(
    ("algorithm", "policy"),
    [pytest.param(PPO, AdDiffusionPolicy, marks=pytest.mark.slow), (MaskablePPO, MaskableAdDiffusionPolicy)],
)
def test_learns_when_to_stop(algorithm, policy):
    env = DummyVecEnv([StopWhenGood] * 8)
    rollouts = {"n_steps": 64, "batch_size": 256, "n_epochs": 8}
    model = algorithm(policy, env, **rollouts, learning_rate=2e-3, gamma=1.0, ent_coef=0.005, seed=0)
    before, _ = play(model, 50)
    model.learn(6_000)
    value, taken = play(model)
    # Backward induction with six draws from U(-1, 1) and cost 0.1: 0.43. An untrained policy is far below.
    assert value > 0.33 > before
    assert all(action != 2 for action, _ in taken)
    high = [action for action, quality in taken if quality > 0.8]
    low = [action for action, quality in taken if quality < -0.2]
    assert np.mean([action == 1 for action in high]) > 0.95
    assert np.mean([action == 0 for action in low]) > 0.9


@pytest.mark.slow
def test_dqn_learns_when_to_stop():
    settings = {
        "buffer_size": 20_000,
        "learning_starts": 1000,
        "batch_size": 128,
        "train_freq": 8,
        "gradient_steps": 8,
        "target_update_interval": 500,
        "learning_rate": 1e-3,
        "gamma": 1.0,
        "exploration_fraction": 0.5,
    }
    model = make_model("dqn", VecMonitor(DummyVecEnv([StopWhenGood] * 8)), settings, 0, "cpu")
    before, _ = play(model, 50)
    model.learn(20_000)
    value, taken = play(model)
    assert value > 0.33 > before
    assert np.mean([action == 1 for action, quality in taken if quality > 0.8]) > 0.95
    assert np.mean([action == 0 for action, quality in taken if quality < -0.2]) > 0.9


def test_the_optimum_in_the_docstring():
    value = -0.1  # the last continue
    for _ in range(5):
        threshold = np.clip(value, -1, 1)
        value = -0.1 + (1 - threshold**2) / 4 + threshold * (threshold + 1) / 2
    best_first = (1 - value**2) / 4 + value * (value + 1) / 2
    assert best_first == pytest.approx(0.43, abs=0.02)

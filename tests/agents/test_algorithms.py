"""Algorithms by name: each that takes discrete actions learns, is saved in plain files and decides as SB3 predicts."""

import sys
import types

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from addiffusion_env.agents.algorithms import (
    algorithm_settings,
    check_algorithm,
    find_algorithm,
    make_model,
    shipped_algorithms,
    table_settings,
)
from addiffusion_env.agents.checkpoints import buffer_state, load_buffer_state
from addiffusion_env.agents.policy import (
    AdDiffusionPolicy,
    KeyProjection,
    action_probabilities,
    build_network,
    describe_network,
)
from addiffusion_env.errors import AdDiffusionError, ConfigError, UnknownNameError

SPACE = spaces.Dict({"clip": spaces.Box(-1, 1, (6,), np.float32), "quality": spaces.Box(-1, 1, (2,), np.float32)})
ROLLOUTS = {"n_steps": 4, "batch_size": 8, "n_epochs": 1}
REPLAY = {"learning_starts": 4, "batch_size": 4, "buffer_size": 16, "train_freq": 2, "policy_kwargs": {"net_arch": [8]}}
SMALL = {
    "a2c": {"n_steps": 4},
    "dqn": REPLAY,
    "qrdqn": REPLAY,
    "maskable_ppo": ROLLOUTS,
    "ppo": ROLLOUTS,
    "recurrent_ppo": {**ROLLOUTS, "policy_kwargs": {"lstm_hidden_size": 8}},
    "trpo": {"n_steps": 4, "batch_size": 8},
}


class Guess(gym.Env):
    """Three decisions; the first number of ``quality`` says which action pays."""

    observation_space, action_space = SPACE, spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 3
        return self._see(), {}

    def step(self, action):
        self.left -= 1
        reward = float(int(action) == self.right)
        return self._see(), reward, self.left == 0, False, {}

    def _see(self):
        self.right = int(self.np_random.integers(3))
        return {"clip": np.zeros(6, np.float32), "quality": np.array([self.right - 1, 0], np.float32)}

    def action_masks(self):
        return np.ones(3, bool)


def made(name, settings=None):
    env = VecMonitor(DummyVecEnv([Guess] * 2))
    return make_model(name, env, SMALL[name] if settings is None else settings, 0, "cpu")


def observe(rows, seed=0):
    rng = np.random.default_rng(seed)
    return {key: rng.uniform(-1, 1, (rows, *box.shape)).astype(np.float32) for key, box in SPACE.spaces.items()}


def told(function, *arguments):
    with pytest.raises(AdDiffusionError) as caught:
        function(*arguments)
    return caught.value


# ---- names


@pytest.mark.parametrize("name", ["recurrent_ppo", "RecurrentPPO", "recurrentppo"])
def test_a_name_as_the_field_writes_it_or_in_lower_case(name):
    assert find_algorithm(name) is RecurrentPPO


def test_all_that_take_discrete_actions_are_known_and_the_others_say_why():
    suitable = {name for name in shipped_algorithms() if name in SMALL}
    assert suitable == set(SMALL)
    for name in shipped_algorithms().keys() - suitable:
        error = told(find_algorithm, name)
        assert "Discrete(3)" in error.cause or "no policy for a Dict observation" in error.cause, name
        assert error.remedy.startswith("use one of a2c, dqn")
    assert "says: The algorithm only supports (Box,)" in told(find_algorithm, "SAC").cause


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("dqqn", {}, "unknown algorithm 'dqqn'\n  -> did you mean 'dqn'"),
        ("my_algorithms.Mine", {}, r"not in a module that is imported\n  -> pass plugins=\[my_algorithms\]"),
        ("sys.exit", {}, "sys.exit is not a class derived from BaseAlgorithm"),
        ("dqn", {"bufer_size": 8}, "dqn has no setting 'bufer_size'\n  -> did you mean 'buffer_size'"),
        ("dqn", {"tensorboard_log": "here"}, "dqn has no setting 'tensorboard_log'"),
        ("dqn", {"buffer_size": "many"}, "buffer_size of dqn must be int, got 'many'"),
        (
            "dqn",
            {"policy": "MultiInputPolcy"},
            "dqn has no policy 'MultiInputPolcy'\n  -> did you mean 'MultiInputPolicy'",
        ),
        (
            "qrdqn",
            {"policy_kwargs": {"net_arhc": [8]}},
            r"policy_kwargs of qrdqn\) has no setting 'net_arhc'\n  -> did you",
        ),
        ("ppo", {"policy_kwargs": {"activation_fn": "torch.nn.Tnh"}}, "did you mean 'torch.nn.Tanh'"),
        (
            "ppo",
            {"policy_kwargs": {"features_extractor_class": "subprocess.run"}},
            "not a class derived from BaseFeatures",
        ),
    ],
)
def test_what_would_not_work_is_refused_before_anything_is_loaded(name, settings, words):
    with pytest.raises((ConfigError, UnknownNameError), match=words):
        check_algorithm(name, settings)


def test_the_settings_of_ppo_belong_to_it_and_its_variants():
    ppo, others = {"n_steps": 8, "gamma": 1.0}, {"gamma": 0.9}
    assert algorithm_settings("dqn", ppo, others) == {"gamma": 0.9}
    assert algorithm_settings("recurrent_ppo", ppo, others) == {"n_steps": 8, "gamma": 0.9}
    assert algorithm_settings("ppo", ppo, None) == ppo
    assert algorithm_settings("maskable_ppo", ppo, None, ["ppo.n_steps=8"]) == ppo
    assert algorithm_settings("dqn", ppo, None, ["algorithm_kwargs={gamma:1.0}", "report=null"]) == {}
    error = told(algorithm_settings, "dqn", ppo, None, ["lanes=2", "+ppo.n_steps=8"])
    assert "ppo.n_steps would not take effect" in error.cause and "'algorithm_kwargs={n_steps: 8}'" in error.remedy


def test_a_table_learns_with_the_network_of_the_live_agent():
    arch = {"policy_kwargs": {"net_arch": [8]}}
    assert table_settings("ppo", {**arch, "gamma": 0.9}, {"n_steps": 4}) == {"n_steps": 4, **arch}
    assert table_settings("maskable_ppo", {}, {"n_steps": 4}) == {"n_steps": 4}
    error = told(table_settings, "ppo", {}, {"n_steps": 4, **arch})
    assert error.cause.startswith("tabular.ppo.policy_kwargs is {'net_arch': [8]}") and "give it once" in error.remedy
    for name in ("dqn", "recurrent_ppo"):
        assert "tabular=null" in told(table_settings, name, {}, {}).remedy


@pytest.fixture
def plugin(monkeypatch):
    module = types.ModuleType("my_algorithms")

    class Bold(DQN):
        """DQN with another default."""

        def __init__(self, *args, boldness=0.5, **kwargs):
            super().__init__(*args, exploration_final_eps=boldness, **kwargs)

    class Wide(KeyProjection):
        """Projections of another width."""

        def __init__(self, observation_space, width=16):
            super().__init__(observation_space, dict.fromkeys(observation_space.spaces, width))

    for kind in (Bold, Wide):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_an_algorithm_and_a_network_of_ones_own(plugin):
    extractor = {"features_extractor_class": "my_algorithms.Wide", "features_extractor_kwargs": {"width": 4}}
    settings = {**REPLAY, "boldness": 0.25, "policy_kwargs": {**extractor, "net_arch": [8]}}
    model = made("my_algorithms.Bold", settings)
    assert isinstance(model, plugin.Bold) and model.exploration_final_eps == 0.25
    model.learn(12)
    assert model.policy.q_net.features_extractor.features_dim == 8
    network = describe_network(type(model.policy), model.policy_kwargs)
    assert network["policy_kwargs"]["features_extractor_class"] == "my_algorithms.Wide"
    assert "did you mean 'boldness'" in told(check_algorithm, "my_algorithms.Bold", {"boldnes": 1.0}).remedy
    del sys.modules["my_algorithms"]
    assert "pass plugins=[my_algorithms]" in told(build_network, network, {}, SPACE).remedy


# ---- each of them


@pytest.mark.parametrize("name", SMALL)
def test_it_learns_and_its_saved_network_decides_as_it_predicts(name):
    model = made(name)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(16)
    after = model.policy.state_dict()
    assert any(not torch.equal(value, after[key]) for key, value in before.items()), "no parameter has moved"
    network = describe_network(type(model.policy), model.policy_kwargs)
    assert bool(network) == (name in ("dqn", "qrdqn", "recurrent_ppo")), "the others are this project's own policy"
    again = build_network(network, {"pi": [64, 64], "vf": [64, 64]}, SPACE)
    again.load_state_dict(after)
    again.set_training_mode(False)
    observation, state, memories = observe(5), None, [None] * 5
    legal = np.ones((5, 3), bool)
    for step in range(3):
        observation = observe(5, step)
        wanted, state = model.predict(observation, state, np.zeros(5, bool), deterministic=True)
        chances, memories = action_probabilities(again, observation, legal, memories)
        np.testing.assert_array_equal(chances.argmax(1), wanted)
        np.testing.assert_allclose(chances.sum(1), 1, atol=1e-5)


def test_a_memory_belongs_to_its_lane():
    policy = made("recurrent_ppo").policy
    legal, first, second = np.ones((4, 3), bool), observe(4, 1), observe(4, 2)
    _, memories = action_probabilities(policy, first, legal, [None] * 4)
    kept = [tuple(part.copy() for part in memory) for memory in memories]
    together, _ = action_probabilities(policy, second, legal, memories)
    for lane in (3, 0):
        alone = {key: value[[lane]] for key, value in second.items()}
        chances, _ = action_probabilities(policy, alone, legal[:1], [memories[lane]])
        np.testing.assert_allclose(chances[0], together[lane], atol=1e-5)
        assert all((a == b).all() for a, b in zip(memories[lane], kept[lane], strict=True)), "a memory was changed"
    forgotten, _ = action_probabilities(policy, second, legal, [None] * 4)
    assert abs(forgotten - together).max() > 1e-5


def test_values_choose_among_legal_actions():
    policy = made("dqn").policy
    legal = np.array([[True, False, False], [False, True, False], [False, False, True]])
    chances, _ = action_probabilities(policy, observe(3), legal, [None] * 3)
    assert chances.argmax(1).tolist() == [0, 1, 2]


def test_a_network_without_a_name_cannot_be_described():
    class Hidden(KeyProjection):
        pass

    with pytest.raises(ConfigError, match="cannot be found again by its name"):
        describe_network(AdDiffusionPolicy, {"features_extractor_class": Hidden})
    with pytest.raises(ConfigError, match=r"policy_kwargs\.net_arch is <function .*files cannot hold"):
        describe_network(made("dqn").policy_class, {"net_arch": lambda: None})


def test_a_replay_buffer_is_restored_at_the_place_of_its_snapshot():
    """Transitions that follow a snapshot stand where the same ones are collected again."""
    model = made("dqn")
    model.learn(12)
    buffer = model.replay_buffer
    place, full = buffer.pos, buffer.full
    model.learn(8, reset_num_timesteps=False)  # past the end: buffer_size=16 holds eight of each environment
    assert buffer.full and not full
    saved = buffer_state(buffer)
    other = made("dqn").replay_buffer
    load_buffer_state(other, saved, place, full)
    assert (other.pos, other.full, other.size()) == (place, False, place)
    for key, value in buffer.observations.items():
        np.testing.assert_array_equal(other.observations[key], value)
    np.testing.assert_array_equal(other.rewards, buffer.rewards)

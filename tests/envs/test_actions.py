"""Forms of actions that clients send, and of masks that they accept."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector.utils import batch_space

from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_env.envs.slot import ActionSpace, BatchedActionSpace, numbers_of
from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv
from addiffusion_env.errors import IllegalActionError

TINY = {"steps": 2, "refine": "off", "early_exit_steps": 0, "guidance_scale": 1.0}


@pytest.mark.parametrize(
    "action", [1, np.int64(1), np.uint8(1), np.array(1), np.array([1]), np.array([[1]]), [1], 1.0, torch.tensor([1])]
)
def test_one_action_in_any_form(action):
    env = AdDiffusionEnv(**TINY)
    env.reset(seed=0)
    *_, terminated, _, info = env.step(action)
    assert terminated and info["action"] == 1 and type(info["action"]) is int


@pytest.mark.parametrize(
    "actions",
    [[0, 1], (0, 1), np.array([[0], [1]]), np.array([0, 1], np.int8), torch.tensor([0, 1]), [torch.tensor(0), 1]],
)
def test_actions_of_lanes_in_any_form(actions):
    assert numbers_of(actions, 2) == [0, 1]


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0], r"got 1 actions for 2 lanes\n  -> send an array of shape \(2,\)"),
        ([0, 1, 1], "got 3 actions for 2 lanes"),
        (1, r"got actions of shape \(\) for 2 lanes"),
        (np.zeros((2, 3)), r"got actions of shape \(2, 3\) for 2 lanes"),
        ([[0], [1, 2]], "whole numbers"),
        ([0, 0.5], "actions must be whole numbers, got"),
        ([0, float("nan")], "whole numbers"),
        ([0, float("inf")], "whole numbers"),
        (["stop", "stop"], "whole numbers"),
        ([None, 0], "whole numbers"),
        ([0, 3], "lane 1: action 3 is none of 0, 1, 2"),
        ([-1, 0], "lane 0: action -1 is none of 0, 1, 2"),
    ],
)
def test_an_invalid_action_is_refused_and_changes_nothing(actions, message):
    env = AdDiffusionVectorEnv(2, **TINY)
    env.reset(seed=0)
    with pytest.raises(IllegalActionError, match=message) as caught:
        env.step(actions)
    assert caught.value.remedy
    assert [slot.decisions for slot in env.episodes.slots] == [0, 0]


def test_action_spaces_accept_the_masks_of_environments():
    env = AdDiffusionEnv(steps=2)
    env.reset(seed=0)
    masks = env.action_masks()
    assert masks.dtype == bool and masks.tolist() == [True, True, False]
    env.action_space.seed(0)
    drawn = [int(env.action_space.sample(mask=masks)) for _ in range(30)]
    assert set(drawn) == {0, 1}
    env.action_space.seed(0)
    assert drawn == [int(env.action_space.sample(mask=masks.astype(np.int8))) for _ in range(30)]
    wrapped = gym.make("AdDiffusion-Emoji-v0", steps=2)
    wrapped.reset(seed=0)
    assert wrapped.action_space.sample(mask=wrapped.get_wrapper_attr("action_masks")()) in (0, 1)
    lanes = AdDiffusionVectorEnv(3, steps=2)
    lanes.reset(seed=0)
    lanes.action_space.seed(0)
    drawn = np.stack([lanes.action_space.sample(mask=lanes.action_masks()) for _ in range(30)])
    assert drawn.shape == (30, 3) and set(drawn.ravel().tolist()) == {0, 1}
    only = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    assert lanes.action_space.sample(mask=only.astype(bool)).tolist() == [2, 1, 0]
    assert lanes.action_space.sample(mask=tuple(only.astype(np.int8))).tolist() == [2, 1, 0]


def test_the_spaces_are_gymnasiums():
    assert ActionSpace() == gym.spaces.Discrete(3) and gym.spaces.Discrete(3) == ActionSpace()
    assert BatchedActionSpace(2) == gym.spaces.MultiDiscrete([3, 3])
    batched = batch_space(ActionSpace(seed=4), 2)  # what SyncVectorEnv does
    assert isinstance(batched, BatchedActionSpace)
    assert batched.sample().tolist() == batch_space(gym.spaces.Discrete(3, seed=4), 2).sample().tolist()

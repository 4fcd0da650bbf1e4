"""SB3's view of the lanes."""

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecMonitor

from addiffusion_env.agents.factory import env_state, load_env_state, make_vec_env, set_training
from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv
from addiffusion_env.errors import AdDiffusionError
from addiffusion_env.rollouts.vec_env import AdDiffusionVecEnv

SETTINGS = {"steps": 2, "refine": "retry"}


def test_equals_the_vector_env_and_reports_terminal_observations():
    vec, plain = AdDiffusionVecEnv(2, seed=4, **SETTINGS), AdDiffusionVectorEnv(2, **SETTINGS)
    ours, (theirs, _) = vec.reset(), plain.reset(seed=4)
    np.testing.assert_array_equal(ours["quality"], theirs["quality"])
    assert vec.reset_infos[1]["prompt"]
    for actions in ([0, 1], [0, 0]):
        ours, rewards, dones, infos = vec.step(np.array(actions))
        theirs, expected, terminated, _, more = plain.step(np.array(actions))
        np.testing.assert_allclose(rewards, expected, atol=1e-6)
        np.testing.assert_array_equal(dones, terminated)
        for index in np.flatnonzero(dones):
            np.testing.assert_array_equal(
                infos[index]["terminal_observation"]["clip"], more["final_obs"][index]["clip"]
            )
            assert infos[index]["TimeLimit.truncated"] is False
            assert infos[index]["image"].shape == (64, 64, 3)
            assert isinstance(infos[index]["nfe"], float)
        for key, value in ours.items():
            np.testing.assert_array_equal(value, theirs[key])


def test_truncation_is_said():
    vec = AdDiffusionVecEnv(1, max_decisions=1, **SETTINGS)
    vec.reset()
    _, _, dones, infos = vec.step(np.array([0]))
    assert dones[0] and infos[0]["TimeLimit.truncated"] is True


def test_masks_reach_maskable_ppo():
    vec = make_vec_env("lanes", 2, 0, SETTINGS)
    vec.reset()
    assert np.stack(vec.env_method("action_masks")).tolist() == [[True, True, False]] * 2


@pytest.mark.parametrize("kind", ["lanes", "dummy"])
def test_state_goes_on_exactly(kind):
    env = make_vec_env(kind, 2, 7, SETTINGS)
    assert isinstance(env, VecMonitor)
    set_training(env, True)
    env.reset()
    env.step(np.array([0, 0]))
    state = env_state(env)
    first = env.step(np.array([2, 1]))
    other = make_vec_env(kind, 2, 99, SETTINGS)
    load_env_state(other, state)
    second = other.step(np.array([2, 1]))
    np.testing.assert_array_equal(first[1], second[1])
    for key in first[0]:
        np.testing.assert_array_equal(first[0][key], second[0][key])
    assert first[3][1]["episode"]["r"] == second[3][1]["episode"]["r"]


def test_lanes_and_dummy_draw_the_same_episodes():
    one, two = make_vec_env("lanes", 2, 5, SETTINGS), make_vec_env("dummy", 2, 5, SETTINGS)
    a, b = one.reset(), two.reset()
    np.testing.assert_allclose(a["clip"], b["clip"], atol=1e-5)


def test_bad_kinds():
    with pytest.raises(AdDiffusionError, match="did you mean 'lanes'"):
        make_vec_env("lane", 2, 0, SETTINGS)
    with pytest.raises(AdDiffusionError, match="num_envs must be at least 1"):
        make_vec_env("lanes", 0, 0, SETTINGS)

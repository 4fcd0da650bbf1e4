"""The SB3 vectorised environment."""

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from addiffusion_env.agents.checkpoints import env_state, load_env_state
from addiffusion_env.agents.factory import make_rollouts
from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_env.envs.sb3_env import AdDiffusionVecEnv
from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv
from addiffusion_env.errors import AdDiffusionError

SETTINGS = {"steps": 2, "refine": "resample_short"}


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


def test_truncation_is_reported():
    vec = AdDiffusionVecEnv(1, max_decisions=1, **SETTINGS)
    vec.reset()
    _, _, dones, infos = vec.step(np.array([0]))
    assert dones[0] and infos[0]["TimeLimit.truncated"] is True


def test_equals_sb3s_own_vectorised_environment_infos_included():
    """Up to rounding, which depends on the batch size."""
    ours, theirs = AdDiffusionVecEnv(2, seed=7, **SETTINGS), DummyVecEnv([lambda: AdDiffusionEnv(**SETTINGS)] * 2)
    theirs.seed(7)
    ours.reset(), theirs.reset()
    for actions in ([0, 1], [2, 0], [1, 0]):
        mine, other = ours.step(np.array(actions)), theirs.step(np.array(actions))
        assert mine[1].dtype == other[1].dtype and mine[2].tolist() == other[2].tolist()
        np.testing.assert_allclose(mine[1], other[1], atol=1e-4)
        for one, two in zip([*mine[3], *ours.reset_infos], [*other[3], *theirs.reset_infos], strict=True):
            assert {key: type(value) for key, value in one.items()} == {key: type(value) for key, value in two.items()}
            for key in ("prompt", "seed", "step", "nfe", "action", "has_image", "fault"):
                assert one[key] == two[key]
        assert [info["TimeLimit.truncated"] for info in mine[3]] == [False, False]


@pytest.mark.parametrize("options", [{"prompt": "a photo of a dog"}, [{"prompt": "a photo of a dog"}, {"seed": 5}]])
def test_options_take_effect_once(options):
    vec = AdDiffusionVecEnv(2, seed=3, **SETTINGS)
    vec.reset()
    drawn = [info["prompt"] for info in vec.reset_infos]
    vec.seed(3)
    vec.set_options(options)
    vec.reset()
    second = "a photo of a dog" if isinstance(options, dict) else drawn[1]
    assert [info["prompt"] for info in vec.reset_infos] == ["a photo of a dog", second]
    assert (vec.reset_infos[1]["seed"] == 5) == isinstance(options, list)
    vec.seed(3)
    vec.reset()
    assert [info["prompt"] for info in vec.reset_infos] == drawn
    for prompt in ("a dog", None):
        vec.set_options({"promt": prompt})
        with pytest.raises(AdDiffusionError, match="reset has no option 'promt'\n  -> did you mean 'prompt'"):
            vec.reset()


def test_sb3s_methods_reach_the_lanes():
    vec = AdDiffusionVecEnv(2, render_mode="rgb_array", **SETTINGS)
    vec.reset()
    assert vec.render().shape == (592, 256, 3)  # stacked vertically
    assert [frame.shape for frame in vec.env_method("render", indices=[1])] == [(296, 256, 3)]
    assert vec.get_attr("spec") == [None, None] and vec.has_attr("action_masks") and not vec.has_attr("nope")
    with pytest.raises(TypeError, match="unexpected keyword argument 'frameskip'"):
        AdDiffusionVecEnv(2, frameskip=1)


def test_close_closes_the_window(monkeypatch):
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    vec = AdDiffusionVecEnv(2, render_mode="human", **SETTINGS)
    vec.reset()
    assert vec.render() is None and vec.view.window is not None
    vec.close()
    assert vec.view.window is None
    vec.close()


def test_masks_reach_maskable_ppo():
    vec = make_rollouts({"kind": "local"}, 2, 0, SETTINGS)
    vec.reset()
    assert np.stack(vec.env_method("action_masks")).tolist() == [[True, True, False]] * 2


def test_a_restored_state_continues_exactly():
    env = make_rollouts({"kind": "local"}, 2, 7, SETTINGS)
    assert isinstance(env, VecMonitor)
    env.reset()
    env.step(np.array([0, 0]))
    state = env_state(env)
    first = env.step(np.array([2, 1]))
    other = make_rollouts({"kind": "local"}, 2, 99, SETTINGS)
    load_env_state(other, state)
    second = other.step(np.array([2, 1]))
    np.testing.assert_array_equal(first[1], second[1])
    for key in first[0]:
        np.testing.assert_array_equal(first[0][key], second[0][key])
    assert first[3][1]["episode"]["r"] == second[3][1]["episode"]["r"]


def test_a_state_of_an_earlier_version_is_read():
    """Earlier versions stored pooled reward statistics in states and checkpoints."""
    env, other = (make_rollouts({"kind": "local"}, 1, seed, SETTINGS) for seed in (7, 99))
    env.reset()
    state = env_state(env)
    load_env_state(other, {**state, "lanes": {**state["lanes"], "scale": {"clip": [6.0, 0.2, 0.01]}}})
    assert other.env_method("action_masks")[0].tolist() == [True, True, False]
    assert other.venv.episodes.lane(0).prompt.text == env.venv.episodes.lane(0).prompt.text


def test_lanes_and_dummy_draw_the_same_episodes():
    one, two = AdDiffusionVecEnv(2, seed=5, **SETTINGS), DummyVecEnv([lambda: AdDiffusionEnv(**SETTINGS)] * 2)
    two.seed(5)
    a, b = one.reset(), two.reset()
    np.testing.assert_allclose(a["clip"], b["clip"], atol=1e-5)


def test_no_lanes_are_refused():
    with pytest.raises(AdDiffusionError, match="num_envs must be at least 1"):
        make_rollouts({"kind": "local"}, 0, 0, SETTINGS)

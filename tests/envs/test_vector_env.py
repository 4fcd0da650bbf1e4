"""The vector environment: rows equal scalar environments, with Gymnasium's same-step reset."""

import gymnasium as gym
import numpy as np
import pytest
import rounding
from gymnasium.vector import AutoresetMode

from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_env.envs.sb3_env import AdDiffusionVecEnv
from addiffusion_env.envs.slot import info_of
from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv, stacked
from addiffusion_env.errors import ConfigError

SETTINGS = {"steps": 3, "refine": "resample_short"}
PLAN = np.array([[0, 0, 1], [2, 0, 0], [0, 2, 1], [0, 0, 0], [1, 0, 0]])  # one row per step, one column per lane


def test_make_vec_takes_the_vector_entry_point():
    env = gym.make_vec("AdDiffusion-Emoji-v0", num_envs=2, **SETTINGS)
    assert isinstance(env.unwrapped, AdDiffusionVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)


@pytest.mark.numeric
def test_rows_equal_scalar_environments():
    vector = AdDiffusionVectorEnv(3, **SETTINGS)
    scalars = [AdDiffusionEnv(**SETTINGS) for _ in range(3)]
    observation, infos = vector.reset(seed=10)
    rows = [env.reset(seed=10 + index) for index, env in enumerate(scalars)]
    compare(observation, [row[0] for row in rows])
    assert list(infos["prompt"]) == [row[1]["prompt"] for row in rows]
    for actions in PLAN:
        observation, reward, terminated, truncated, infos = vector.step(actions)
        for index, env in enumerate(scalars):
            own, own_reward, own_terminated, own_truncated, info = env.step(actions[index])
            assert own_reward == pytest.approx(reward[index], abs=rounding.REWARD)
            assert (own_terminated, own_truncated) == (terminated[index], truncated[index])
            if own_terminated:
                compare({k: v[None] for k, v in infos["final_obs"][index].items()}, [own])
                assert infos["final_info"]["nfe"][index] == info["nfe"]
                assert np.abs(infos["final_info"]["image"][index].astype(int) - info["image"]).max() <= 1
                own, info = env.reset()
            assert infos["prompt_id"][index] == info["prompt_id"]
            compare({key: value[index : index + 1] for key, value in observation.items()}, [own])


def compare(batch, rows):
    for key, value in batch.items():
        np.testing.assert_allclose(value, np.stack([row[key] for row in rows]), rtol=0, atol=rounding.SEEN)


def test_all_lanes_share_one_denoiser_call():
    env = AdDiffusionVectorEnv(4, **SETTINGS)
    env.reset(seed=0)
    env.step(np.zeros(4, int))
    counters = env.episodes.engine.counters
    assert (counters.denoiser_batches, counters.evaluations, counters.score_batches) == (1, 4, 1)


def test_options_may_differ_by_lane():
    env = AdDiffusionVectorEnv(2, steps=2)
    _, infos = env.reset(seed=0, options={"prompt": ["a dog", "a cat"], "seed": 5})
    assert list(infos["prompt"]) == ["a dog", "a cat"]
    assert list(infos["seed"]) == [5, 5]
    with pytest.raises(ConfigError, match="3 entries for 2 lanes"):
        env.reset(options={"prompt": ["a", "b", "c"]})
    with pytest.raises(ConfigError, match="seed has 1 entries for 2 lanes"):
        env.reset(seed=[1])


def test_an_option_of_none_is_none_for_that_lane():
    env = AdDiffusionVectorEnv(2, **SETTINGS)
    _, drawn = env.reset(seed=1)
    _, given = env.reset(seed=1, options={"cost_per_nfe": [0.2, None], "seed": [None, 7], "prompt": [None, "a dog"]})
    assert given["cost_per_nfe"].tolist() == [0.2, drawn["cost_per_nfe"][1]]
    assert given["seed"].tolist() == [drawn["seed"][0], 7]
    assert given["prompt"].tolist() == [drawn["prompt"][0], "a dog"]


def test_masks_and_frames():
    env = AdDiffusionVectorEnv(2, render_mode="rgb_array", **SETTINGS)
    env.reset(seed=0)
    assert env.action_masks().tolist() == [[True, True, False]] * 2
    env.step(np.array([0, 0]))
    assert env.action_masks().tolist() == [[True, True, True]] * 2
    assert [frame.shape for frame in env.render()] == [(296, 256, 3)] * 2


@pytest.mark.parametrize("make", [AdDiffusionVectorEnv, AdDiffusionVecEnv])
@pytest.mark.parametrize(
    ("lanes", "words"),
    [(0, "at least 1, got 0"), (1.5, "a whole number, got 1.5"), ("2", "a whole number, got '2'"), (True, "got True")],
)
def test_what_is_no_number_of_lanes_is_refused(make, lanes, words):
    with pytest.raises(ConfigError, match=f"num_envs must be .*{words}"):
        make(lanes)


@pytest.mark.parametrize(("seed", "seen"), [(-1, "-1"), (1.5, "1.5"), ("a", "'a'"), (True, "True")])
def test_what_is_no_seed_is_refused(seed, seen):
    """In a list, too: int() would have made 2 of 2.5."""
    env = AdDiffusionVectorEnv(2, **SETTINGS)
    words = rf"a seed must be a whole number, 0 or more, got {seen}\n  -> "
    for given in (seed, [3, seed]):
        with pytest.raises(ConfigError, match=words):
            env.reset(seed=given)
    with pytest.raises(ConfigError, match=words):
        AdDiffusionVecEnv(2, seed=seed, **SETTINGS)


def test_seeds_of_numpy_are_the_numbers():
    env = AdDiffusionVectorEnv(2, **SETTINGS)
    seeds = [env.reset(seed=seed)[1]["seed"].tolist() for seed in (3, np.int64(3), np.array([3, 4]), (3, np.int32(4)))]
    assert seeds == [seeds[0]] * 4


def test_a_restored_state_continues_exactly():
    env = AdDiffusionVectorEnv(2, **SETTINGS)
    env.reset(seed=3)
    env.step(np.array([0, 0]))
    state = env.episodes.state_dict()
    one = env.step(np.array([0, 2]))
    other = AdDiffusionVectorEnv(2, **SETTINGS)
    other.reset(seed=99)
    other.episodes.load_state_dict(state)
    two = other.step(np.array([0, 2]))
    np.testing.assert_array_equal(one[1], two[1])
    for key in one[0]:
        np.testing.assert_array_equal(one[0][key], two[0][key])


@pytest.mark.parametrize("places", [[0, 2], [0, 1, 2, 3]])
def test_infos_are_stacked_as_gymnasium_does(places):
    count = len(places)
    columns = {
        "count": list(range(count)),
        "cosine": np.linspace(0, 1, count, dtype=np.float32),
        "done": [True] * count,
        "text": ["a dog", "two cats"] * (count // 2),
        "mask": np.arange(4 * count).reshape(count, 2, 2),
        "terms": {"a": [1.0] * count},
    }
    env, expected = gym.vector.VectorEnv(), {}
    env.num_envs = 4
    for row, lane in enumerate(places):
        expected = env._add_info(expected, info_of(columns, row), lane)
    same(stacked(columns, places, 4), expected)


def test_infos_of_a_step_are_those_of_gymnasium():
    """The same episodes as SB3's environment, whose infos are one dict per lane, and Gymnasium's joined from them."""
    vector, single = AdDiffusionVectorEnv(3, **SETTINGS), AdDiffusionVecEnv(3, seed=10, **SETTINGS)
    vector.reset(seed=10)
    single.reset()
    for actions in PLAN:
        *_, infos = vector.step(actions)
        _, _, done, infos_of_lanes = single.step(actions)
        expected = {}
        for lane, info in enumerate(infos_of_lanes):
            del info["TimeLimit.truncated"]
            if done[lane]:
                last = info.pop("terminal_observation")
                info = {"final_obs": last, "final_info": info, **single.reset_infos[lane]}
            expected = vector._add_info(expected, info, lane)
        same(infos, expected)


def same(ours, theirs):
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        if key == "final_obs":
            continue
        if isinstance(value, dict):
            same(ours[key], value)
        else:
            assert ours[key].dtype == value.dtype, key
            np.testing.assert_array_equal(ours[key], value)

"""Pickles, copies and snapshots are equal to the original, in the middle of an episode and after its end."""

import copy
import pickle
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_env.envs.sb3_env import AdDiffusionVecEnv
from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv
from addiffusion_env.errors import ConfigError, EpisodeOverError, ResumeError
from addiffusion_env.prompts import Prompt

ID = "AdDiffusion-Emoji-v0"
RICH = {"steps": 3, "refine": "as_published", "cost_per_nfe": [0.0, 0.02], "guidance_scale": 1.0, "early_exit_steps": 0}
ATTEMPTS = {
    "steps": 3,
    "refine": {"preset": "resample_keep_best", "return_to": 2},
    "check_finished": True,
    "guidance_scale": 1.0,
}
COPIES = {"pickle": lambda env: pickle.loads(pickle.dumps(env)), "deepcopy": copy.deepcopy}


def same(one, other):
    return all(data_equivalence(a, b, exact=True) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("settings", [RICH, ATTEMPTS], ids=["regions", "attempts"])
def test_a_copy_continues_like_the_original(way, settings):
    env = gym.make(ID, **settings, render_mode="filmstrip")
    env.reset(seed=3)
    for actions in ((0, 2), (0,), (1, 1)):  # a copy after each step
        other = COPIES[way](env)
        assert other.unwrapped.episodes.backbone is env.unwrapped.episodes.backbone  # the weights are shared
        np.testing.assert_array_equal(env.render(), other.render())
        for action in actions:
            ours, theirs = env.step(action), other.step(action)
            assert same(ours, theirs)
            if ours[2]:
                break
    assert ours[2]
    ended = COPIES[way](env)
    np.testing.assert_array_equal(env.render(), ended.render())
    with pytest.raises(EpisodeOverError, match="after its episode ended"):
        ended.step(0)
    assert same(env.reset(), ended.reset())
    assert len(pickle.dumps(env)) < 200_000


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_vector_environments_and_vec_envs_can_be_pickled(mode):
    env = AdDiffusionVectorEnv(2, autoreset_mode=mode, **RICH)
    env.reset(seed=1)
    env.step(np.array([0, 1]))
    other = pickle.loads(pickle.dumps(env))
    assert other.autoreset_mode is env.autoreset_mode
    assert same(env.step(np.array([2, 0])), other.step(np.array([2, 0])))
    vec = AdDiffusionVecEnv(2, seed=2, **RICH)
    vec.reset()
    vec.step(np.array([0, 1]))
    for twin in (pickle.loads(pickle.dumps(vec)), copy.deepcopy(vec)):
        assert len(pickle.dumps(vec)) < 1_000_000
        before = vec.snapshot()
        assert same(vec.step(np.array([2, 0])), twin.step(np.array([2, 0])))
        vec.restore(before)


@pytest.mark.slow
def test_a_pickle_is_read_by_another_process(tmp_path):
    env = AdDiffusionEnv(**RICH)
    env.reset(seed=3, options={"prompt": Prompt("a photo of a dog", "mine", metadata={"line": 7})})
    env.step(0)
    (tmp_path / "env.pickle").write_bytes(pickle.dumps(env))
    code = (
        "import pickle, sys, torch; torch.set_num_threads(1)\n"
        "env = pickle.load(open(sys.argv[1], 'rb')); reward = env.step(1)[1]\n"
        "print(repr((float(reward), env.episodes.lane(0).prompt.metadata['line'])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "env.pickle")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    reward, line = eval(done.stdout)
    assert (reward, line) == (pytest.approx(env.step(1)[1], abs=1e-6), 7)


def test_a_loaded_backbone_cannot_be_pickled_but_is_shared_by_copies(emoji):
    env = AdDiffusionEnv(backbone=emoji, **RICH)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"loaded backbone \(EmojiBackbone\) cannot be pickled\n  -> name"):
        pickle.dumps(env)
    other = copy.deepcopy(env)
    assert other.episodes.backbone is emoji
    assert same(env.step(0), other.step(0))


@pytest.mark.parametrize("make", [lambda: AdDiffusionVectorEnv(2, **RICH), lambda: AdDiffusionVecEnv(2, **RICH)])
def test_a_snapshot_can_be_restored_any_number_of_times(make):
    env = make()
    env.reset()
    env.step(np.array([0, 0]))
    root = env.snapshot()
    values = []
    for plan in ([[0, 0], [1, 1]], [[2, 0], [0, 1]], [[0, 0], [1, 1]]):
        env.restore(root)
        values.append([env.step(np.array(actions))[1].tolist() for actions in plan])
    assert values[0] == values[2] != values[1]


def test_a_snapshot_can_be_restored_in_another_environment():
    one, other = AdDiffusionEnv(**RICH, render_mode="filmstrip"), AdDiffusionEnv(**RICH, render_mode="filmstrip")
    one.reset(seed=5)
    one.step(0)
    filmstrip = one.render()
    other.restore(one.snapshot())
    np.testing.assert_array_equal(other.render(), filmstrip)
    assert same(one.step(2), other.step(2))
    with pytest.raises(ResumeError, match="the snapshot has 1 lanes, this environment 2\n  -> use num_envs=1"):
        AdDiffusionVectorEnv(2, **RICH).restore(one.snapshot())
    pair = AdDiffusionVectorEnv(2, **RICH)
    pair.reset(seed=1)
    with pytest.raises(ResumeError, match="the state has 1 lanes, this environment 2\n  -> use num_envs=1"):
        pair.load_state_dict(one.state_dict())
    assert pair.step([0, 0])[1].shape == (2,), "a state that is refused changes nothing"


def test_a_state_of_an_ended_lane_stays_ended():
    env = AdDiffusionVectorEnv(2, autoreset_mode="disabled", **RICH)
    env.reset(seed=0)
    *_, infos = env.step(np.array([1, 0]))
    other = AdDiffusionVectorEnv(2, autoreset_mode="disabled", **RICH)
    other.load_state_dict(env.state_dict())
    assert [other.episodes.ended(lane) for lane in range(2)] == [True, False]
    mask = {"reset_mask": np.array([True, False])}
    assert same(env.reset(options=mask), other.reset(options=mask))
    np.testing.assert_array_equal(other.episodes.pixels(0).shape, infos["image"][0].shape)

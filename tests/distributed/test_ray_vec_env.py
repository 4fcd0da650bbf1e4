"""Lanes in Ray actors: the same episodes for any number of workers, and recovery from lost workers."""

import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import rounding
import torch

from addiffusion_env.agents.checkpoints import env_state, load_env_state
from addiffusion_env.agents.factory import make_rollouts
from addiffusion_env.distributed import actor_pool
from addiffusion_env.distributed.actor_pool import RayConfig, start_ray
from addiffusion_env.distributed.ray_vec_env import Losses, RayVecEnv, thumbnail
from addiffusion_env.envs.sb3_env import AdDiffusionVecEnv
from addiffusion_env.errors import AdDiffusionError, ConfigError, ResumeError, WorkerError

ray = pytest.importorskip("ray")

SETTINGS = {"steps": 2, "refine": "resample_short", "cost_per_nfe": [0.0, 0.05]}
LANES = 4
ACTIONS = np.array([[0, 1, 2, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 2, 0, 0]])


@pytest.fixture(scope="module", autouse=True)
def own_ray():
    """One small Ray for this file, which the environments share."""
    start_ray(RayConfig())
    yield
    ray.shutdown()


def remote(workers, seed=3, lanes=LANES, settings=SETTINGS, cpus=None, **rollouts):
    """A RayVecEnv on a quarter of two cores, so that several can run at once, with one thread per worker."""
    share = 0.5 / workers if cpus is None else cpus
    return RayVecEnv(lanes, seed, RayConfig(workers=workers, cpus=share, **rollouts), **settings)


def play(env, actions=ACTIONS):
    """(observations, rewards, dones, infos) of a few steps in training."""
    rows = [(env.reset(), None, None, env.reset_infos)]
    rows += [env.step(row) for row in actions]
    return rows


def facts(rows):
    """The values that must be exactly equal: prompts, seeds, actions, costs, ends."""
    names = (
        "prompt_id",
        "seed",
        "step",
        "nfe",
        "network_calls",
        "refinements",
        "cost_per_nfe",
        "action",
        "action_trace",
    )
    return [[{name: np.asarray(info[name]).tolist() for name in names} for info in row[3]] for row in rows]


def assert_alike(ours, theirs, tolerance):
    assert facts(ours) == facts(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for key, value in one[0].items():
            np.testing.assert_allclose(value, other[0][key], atol=tolerance)
        if one[1] is not None:
            np.testing.assert_allclose(one[1], other[1], atol=tolerance)
            np.testing.assert_array_equal(one[2], other[2])


def flat(state):
    """A state with its tensors as bytes, to the last bit."""
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    return [flat(value) for value in state] if isinstance(state, list | tuple) else state


@pytest.fixture(scope="module")
def local():
    env = AdDiffusionVecEnv(LANES, 3, **SETTINGS)
    return play(env), env.state_dict()


@pytest.fixture(scope="module")
def pair():
    """Two workers with two lanes each, shared by tests, since a worker takes seconds to start."""
    env = remote(2)
    yield env
    env.close()


@pytest.mark.slow
def test_one_worker_equals_the_environment_of_this_process(local):
    env = remote(1, cpus=1)  # one thread, as in this process: the number of threads changes the order of sums
    rows = play(env)
    assert_alike(rows, local[0], tolerance=0)
    for ours, theirs in zip(rows[1:], local[0][1:], strict=True):
        for one, other in zip(ours[3], theirs[3], strict=True):
            assert one.keys() == {*other, "worker_lost"}
            assert one["reward_terms"] == other["reward_terms"]
            assert one.get("TimeLimit.truncated") == other.get("TimeLimit.truncated")
    state = env.state_dict()
    assert flat({key: state[key] for key in local[1]}) == flat(local[1])
    env.close()


def test_two_workers_give_what_one_gives(local, pair):
    assert_alike(play(pair), local[0], tolerance=rounding.SEEN)


@pytest.mark.slow
def test_four_workers_give_what_one_gives(local):
    env = remote(4)
    assert_alike(play(env), local[0], tolerance=rounding.SEEN)
    env.close()


def test_masks_methods_and_attributes(pair):
    pair.seed(3)
    pair.reset()
    assert pair.has_attr("action_masks") and not pair.has_attr("nonsense")
    assert np.stack(pair.env_method("action_masks")).tolist() == [[True, True, False]] * LANES
    np.testing.assert_array_equal(np.concatenate(pair.env_method("action_masks", indices=[0])[:1]), [True, True, False])
    assert pair.get_attr("num_envs") == [2] * LANES
    assert pair.get_attr("render_mode", indices=1) == [None]
    pair.set_attr("render_mode", "rgb_array")
    assert [frame.shape for frame in pair.get_images()] == [(296, 256, 3)] * LANES
    pair.set_attr("render_mode", None)
    with pytest.raises(AttributeError, match="nonsense"):
        pair.get_attr("nonsense")


def test_states_fit_any_number_of_workers(pair):
    here = make_rollouts({"kind": "local"}, LANES, 5, SETTINGS)
    here.reset()
    here.step(np.array([0, 0, 1, 0]))
    state = env_state(here)
    expected = here.step(np.array([2, 1, 0, 0]))
    pair.load_state_dict(state["lanes"])
    assert pair.state_dict()["slots"][2]["episode"] == 1
    found = pair.step(np.array([2, 1, 0, 0]))
    np.testing.assert_array_equal(found[2], expected[2])
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=rounding.REWARD)
    assert [info["prompt"] for info in found[3]] == [info["prompt"] for info in expected[3]]
    other = make_rollouts({"kind": "local"}, LANES, 0, SETTINGS)
    load_env_state(other, {**state, "lanes": pair.state_dict()})
    with pytest.raises(ResumeError, match="3 lanes, this environment 4"):
        pair.load_state_dict({"slots": [None] * 3, "faults": 0})


@pytest.mark.parametrize(
    ("number", "cause", "counted"),
    [
        pytest.param(signal.SIGKILL, "died", (1, 0, 2), id="killed"),
        pytest.param(signal.SIGSTOP, "hung", (0, 1, 2), id="stopped", marks=pytest.mark.slow),
    ],
)
def test_a_lost_worker_affects_only_its_own_episodes(pair, number, cause, counted, monkeypatch):
    quiet, ahead = AdDiffusionVecEnv(LANES, 3, **SETTINGS), AdDiffusionVecEnv(LANES, 0, **SETTINGS)
    pair.seed(3)
    pair.losses = Losses()
    seen, _ = pair.reset(), quiet.reset()
    following = [ahead.lanes.episodes.begin(lane, 3 + lane, first=1) for lane in range(LANES)]
    pid = pair.pool.actors[1].pid
    if cause == "hung":
        monkeypatch.setattr(RayVecEnv, "step_async", impatient(RayVecEnv.step_async))
    os.kill(pid, number)
    observation, rewards, dones, infos = pair.step(np.zeros(LANES, int))
    monkeypatch.undo()
    expected = quiet.step(np.zeros(LANES, int))

    assert dones.tolist() == [False, False, True, True]
    np.testing.assert_allclose(rewards, [*expected[1][:2], 0, 0], rtol=0, atol=rounding.REWARD)
    for lane in (2, 3):
        assert infos[lane]["worker_lost"] == cause and infos[lane]["TimeLimit.truncated"] is True
        np.testing.assert_array_equal(infos[lane]["terminal_observation"]["clip"], seen["clip"][lane])
        assert infos[lane]["prompt"] == expected[3][lane]["prompt"]  # of the episode that was lost
        assert pair.reset_infos[lane]["prompt"] == following[lane]["prompt"]  # and of the one after it
    for key, value in observation.items():
        both = np.concatenate([expected[0][key][:2], ahead.lanes.episodes.observe()[key][2:]])
        np.testing.assert_allclose(value, both, rtol=0, atol=rounding.SEEN)
    assert (pair.losses.deaths, pair.losses.hangs, pair.losses.lost_episodes) == counted
    assert pair.state_dict()["losses"]["lost_episodes"] == 2
    assert pair.pool.actors[1].pid != pid and not alive(pid)
    after, expected = pair.step(np.zeros(LANES, int)), quiet.step(np.zeros(LANES, int))
    assert after[2].tolist() == [True, True, False, False]
    assert facts([(0, 0, 0, after[3][:2])]) == facts([(0, 0, 0, expected[3][:2])])


def impatient(step_async):
    """A step with a short deadline, which does not apply to the start of the new worker."""

    def sooner(self, actions):
        step_async(self, actions)
        self._until = time.monotonic() + 10

    return sooner


def alive(pid):
    """Whether a process exists and is not a zombie; waits briefly for it to end."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return False
        except FileNotFoundError:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
def test_a_worker_lost_between_steps_is_replaced_in_the_next_step():
    env = remote(2)
    env.reset()
    os.kill(env.pool.actors[0].pid, signal.SIGKILL)
    time.sleep(2)
    slots = env.state_dict()["slots"]
    assert slots[0] == {"seed": 3, "episode": 0, "lane": None} and slots[2]["lane"] is not None
    with pytest.raises(WorkerError, match=r"Ray worker 0 died.*\n  -> call step"):
        env.get_attr("num_envs")
    _, _, dones, infos = env.step(np.array([0, 0, 0, 0]))
    assert dones.tolist() == [True, True, False, False] and infos[0]["worker_lost"] == "died"
    assert env.get_attr("num_envs") == [2] * LANES
    env.close()


@pytest.mark.slow
def test_a_worker_that_is_lost_repeatedly_is_an_error():
    env = remote(1, patience=1)
    env.reset()
    env.pool.config = replace(env.pool.config, timeout=0.001, patience=1)  # no worker is that fast
    with pytest.raises(WorkerError, match=r"worker 0 was lost 2 times in a row, the last time it hung"):
        env.step(np.array([0, 0, 0, 0]))
    env.close()


@pytest.mark.slow
def test_a_worker_that_waits_for_cores_causes_a_warning(pair, monkeypatch):
    monkeypatch.setattr(actor_pool, "PATIENT", 1.0)
    with (
        pytest.warns(UserWarning, match=r"has not started after 1 s; each needs 100 CPU \(\d.* free\)"),
        pytest.raises(WorkerError, match="hung"),
    ):
        remote(1, cpus=100.0, start_timeout=2.0, patience=1)


def test_options_reach_the_workers(pair):
    pair.seed(3)
    pair.set_options([{"prompt": "a photo of a dog"}, {}, {}, {"prompt": "a photo of two cats", "cost_per_nfe": 0.04}])
    pair.reset()
    told = [(info["prompt"], info["cost_per_nfe"], info["worker_lost"]) for info in pair.reset_infos]
    assert told[0][0] == "a photo of a dog" and told[3] == ("a photo of two cats", 0.04, "")
    keys = pair.reset_infos[0].keys()
    assert all(info.keys() == keys for info in pair.reset_infos)
    pair.reset()
    assert pair.reset_infos[0]["prompt"] != "a photo of a dog"  # for one reset


def test_errors_of_a_worker_are_raised_here(pair):
    pair.seed(3)
    pair.reset()
    with pytest.raises(AdDiffusionError, match="lane 1: action 7 is none of 0, 1, 2"):
        pair.step(np.array([0, 0, 0, 7]))
    pair.reset()


def test_settings_are_checked_before_ray_is_asked():
    with pytest.raises(ConfigError, match="rollouts has no setting 'worker'\n  -> did you mean 'workers'"):
        RayConfig.of({"kind": "ray", "worker": 2})
    with pytest.raises(ConfigError, match=r"rollouts\.timeout must be above 0, got 0"):
        RayConfig(timeout=0)
    with pytest.raises(ConfigError, match=r"rollouts\.workers must be int, got 'two'"):
        RayConfig.of({"workers": "two"})
    with pytest.raises(ConfigError, match="2 lanes cannot be shared by 3 workers"):
        remote(3, lanes=2)
    with pytest.raises(AdDiffusionError, match="unknown refine preset 'rety'"):
        remote(1, settings={"refine": "rety"})
    with pytest.raises(AdDiffusionError, match=r"unknown rollouts\.kind 'rya'\n  -> did you mean 'ray'"):
        make_rollouts({"kind": "rya"}, 2, 0, {})
    with pytest.raises(ConfigError, match=r"rollouts\.lanes has been removed\n  -> write lanes=VALUE"):
        RayConfig.of({"kind": "ray", "lanes": 8})


def test_thumbnails_are_small():
    wide = np.zeros((40, 100, 3), np.uint8)
    assert thumbnail(wide, 50).shape == (20, 50, 3)
    assert thumbnail(wide, 100) is wide

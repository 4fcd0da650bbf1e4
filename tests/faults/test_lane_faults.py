"""Faults of single lanes are isolated and counted; batches are reduced when the device's memory is too small."""

import re
import sys
import types
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from injected import memory_for, nan_for, scores_with, to_error, to_nan
from rounding import assert_records_alike

from addiffusion_env.agents.algorithms import make_model
from addiffusion_env.agents.callbacks import EpisodeLog
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.episode import play
from addiffusion_env.engine.lane import Fault, FaultCount
from addiffusion_env.engine.lanes import AUTO_LANES, lanes_of
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.envs.sb3_env import AdDiffusionVecEnv
from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv
from addiffusion_env.errors import AdDiffusionError, ConfigError, DeviceMemoryError, NumericsError, ScorerError
from addiffusion_env.evaluation.judges import Judges
from addiffusion_env.evaluation.runner import EvaluationContext, evaluate
from addiffusion_env.rewards import TERMS, RewardTerm
from addiffusion_env.samplers import make_sampler

PROCESS = ProcessConfig(steps=2, refine=ProcessConfig().refine)
TEXTS = ["a photo of a dog", "a photo of two cats", "a photo of a green apple"]
SICK = TEXTS[1]


def images(engine, backbone, prompts, looks=False):
    engine.decider = lambda requests: [0] * len(requests)
    return engine.run([play(backbone, PROCESS, prompt, 0, looks=looks) for prompt in prompts])


@pytest.fixture(scope="module")
def three(prompts):
    return [next(prompt for prompt in prompts if prompt.text == text) for text in TEXTS]


@pytest.fixture(scope="module")
def healthy(emoji, scorers, three):
    return images(Engine(emoji, scorers), emoji, three)


@pytest.fixture(params=["denoiser", "nan score", "raising scorer"])
def fault(request, emoji, scorers, monkeypatch):
    """The kind of fault of the second prompt's lane, and the error it is dropped with."""
    if request.param == "denoiser":
        monkeypatch.setattr(emoji, "predict", nan_for(emoji, SICK))
        return NumericsError, "denoiser returned NaN"
    kind = to_nan if request.param == "nan score" else to_error
    monkeypatch.setattr(scorers.preference, "score", scores_with(scorers.preference, SICK, kind))
    if kind is to_nan:
        return NumericsError, "not finite for 1 of 1 images, first for 'a photo of two cats'"
    return ScorerError, "raised ZeroDivisionError: a scorer's own mistake"


def test_one_lane_is_dropped_and_the_others_are_unaffected(fault, emoji, scorers, three, healthy):
    engine = Engine(emoji, scorers, faults=FaultCount(3))
    with pytest.warns(UserWarning, match=r"image dropped \(1 of at most 3\)"):
        found = images(engine, emoji, three)
    assert [isinstance(result, Fault) for result in found] == [False, True, False]
    assert isinstance(found[1].error, fault[0]) and fault[1] in found[1].error.cause
    assert engine.faults.count == 1
    for place in (0, 2):
        torch.testing.assert_close(found[place].image.tensor, healthy[place].image.tensor, atol=1e-3, rtol=0)
        assert found[place].lane.nfe == healthy[place].lane.nfe


def test_without_a_limit_the_first_fault_is_the_error(fault, emoji, scorers, three):
    with pytest.raises(fault[0]):
        images(Engine(emoji, scorers), emoji, three)


def test_too_many_faults_end_the_run(emoji, scorers, three, monkeypatch):
    true = emoji.predict
    monkeypatch.setattr(emoji, "predict", lambda *args: broken(true(*args)))
    engine = Engine(emoji, scorers, faults=FaultCount(2))
    with pytest.warns(UserWarning), pytest.raises(NumericsError, match="2 images were dropped before this one"):
        images(engine, emoji, three)
    assert engine.faults.count == 3


def broken(prediction):
    prediction.x0[:] = float("inf")
    return prediction


def test_a_prompt_that_is_too_long_is_an_error_not_a_fault(emoji, scorers, prompts):
    from addiffusion_env.prompts import Prompt

    engine = Engine(emoji, scorers, faults=FaultCount(9))
    with pytest.raises(AdDiffusionError, match="token"):
        images(engine, emoji, [prompts[0], Prompt.of("dog " * 200)])
    assert engine.faults.count == 0


@pytest.mark.parametrize("limit", [-1, True, 1.5, "many"])
def test_a_limit_is_a_number(limit):
    with pytest.raises(ConfigError, match="max_faults must be a number from 0"):
        FaultCount(limit)


# ---------------------------------------------------------------- environments and training
SETTINGS = {"steps": 2, "refine": "off", "prompts": TEXTS}


def stepped(env, actions):
    env.reset(seed=[4, 5, 6], options={"prompt": TEXTS})
    return env.step(np.array(actions))


@pytest.mark.parametrize("fault", ["nan score"], indirect=True)
def test_in_the_vector_env_a_dropped_episode_is_truncated_and_counted(fault, emoji):
    sick = AdDiffusionVectorEnv(3, backbone=emoji, **SETTINGS, max_faults=1)
    with pytest.warns(UserWarning, match="image dropped"):
        observation, reward, terminated, truncated, infos = stepped(sick, [0, 0, 0])
    assert terminated.tolist() == [False, False, False] and truncated.tolist() == [False, True, False]
    assert fault[1] in infos["final_info"]["fault"][1]
    assert reward[1] == 0 and np.isfinite(reward).all()
    assert all(np.isfinite(value).all() for value in observation.values())
    last = infos["final_obs"][1]
    assert all(np.isfinite(value).all() for value in last.values())
    assert sick.episodes.slots[1].episode == 1 and sick.episodes.slots[1].fault is None  # the next one has begun
    assert sick.episodes.state_dict()["faults"] == 1


def test_a_dropped_episode_is_in_no_mean_and_bootstraps_like_a_truncated_one(emoji, monkeypatch, tmp_path):
    monkeypatch.setattr(emoji, "predict", nan_for(emoji, SICK))
    env = AdDiffusionVecEnv(3, seed=1, backbone=emoji, **SETTINGS, max_faults=99)
    from stable_baselines3.common.logger import configure
    from stable_baselines3.common.vec_env import VecMonitor

    model = make_model("maskable_ppo", VecMonitor(env), {"n_steps": 8, "batch_size": 8, "n_epochs": 1}, 0, "cpu")
    model.set_logger(configure(str(tmp_path / "tensorboard"), ["tensorboard"]))
    log = EpisodeLog({})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.learn(24, callback=log)
    assert log.faults == env.lanes.episodes.engine.faults.count > 0
    assert len(log.episodes) == len(model.ep_info_buffer) > 0
    assert all(torch.isfinite(value).all() for value in model.policy.state_dict().values())
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Scalars("env/dropped_episodes")[-1].value == log.faults


class Square(RewardTerm):
    """A user's term whose values have a wrong shape."""

    def __call__(self, transition):
        return np.zeros((len(transition.action), 1))


@pytest.fixture(params=[float("nan"), float("-inf"), 1e39], ids=str)
def term(request, monkeypatch):
    """A reward with a user's term that is not finite for the second of three lanes, and its value."""
    user = types.ModuleType("users_terms")

    class Moody(RewardTerm):
        def __call__(self, transition):
            return np.where(np.arange(len(transition.action)) % 3 == 1, request.param, 0.0)

    user.Moody = Moody
    monkeypatch.setitem(sys.modules, "users_terms", user)
    monkeypatch.setitem(TERMS._entries, "moody", "users_terms:Moody")
    return {"preset": "default", "moody": 1.0}, request.param


def test_a_non_finite_reward_drops_its_lane(term):
    words = re.escape(f"reward term 'moody' is {term[1]} in lane 1, prompt 'a photo of two cats'")
    with pytest.raises(NumericsError, match=words):
        stepped(AdDiffusionVectorEnv(3, **SETTINGS, reward=term[0]), [0, 0, 0])
    env = AdDiffusionVectorEnv(3, **SETTINGS, reward=term[0], max_faults=2)
    with pytest.warns(UserWarning, match=r"image dropped \(1 of at most 2\): " + words):
        observation, reward, terminated, truncated, infos = stepped(env, [0, 0, 0])
    assert truncated.tolist() == [False, True, False] and not terminated.any()
    assert np.isfinite(reward).all() and reward[1] == 0 and reward[0] != 0
    assert re.match(words, infos["final_info"]["fault"][1])
    assert infos["final_info"]["reward_terms"]["moody"][1] == 0
    assert all(np.isfinite(value).all() for value in observation.values())
    assert env.episodes.slots[1].episode == 1 and env.episodes.engine.faults.count == 1


@pytest.mark.parametrize("term", [float("nan")], ids=str, indirect=True)
def test_a_non_finite_reward_reaches_no_weight_of_a_policy(term):
    from stable_baselines3.common.vec_env import VecMonitor

    env = AdDiffusionVecEnv(3, seed=1, **SETTINGS, reward=term[0], max_faults=99)
    model = make_model("maskable_ppo", VecMonitor(env), {"n_steps": 4, "batch_size": 6, "n_epochs": 1}, 0, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.learn(12)
    assert env.episodes.engine.faults.count == 4  # lane 1, in each of four steps
    assert all(torch.isfinite(value).all() for value in model.policy.state_dict().values())
    assert np.isfinite(model.rollout_buffer.rewards).all()


def test_a_term_of_a_wrong_shape_is_an_error(monkeypatch):
    monkeypatch.setitem(TERMS._entries, "square", f"{__name__}:Square")
    with pytest.raises(AdDiffusionError, match=r"'square' returned an array of shape \(3, 1\) for 3 lanes"):
        stepped(AdDiffusionVectorEnv(3, **SETTINGS, reward={"square": 1.0}), [0, 0, 0])


# ---------------------------------------------------------------- evaluation
@pytest.fixture
def context(emoji, scorers):
    return EvaluationContext(emoji, scorers, PROCESS, Judges.of(["sharpness"]))


@pytest.mark.parametrize("fault", ["raising scorer"], indirect=True)
def test_in_evaluation_the_image_is_left_out_counted_and_retried(fault, context, three, tmp_path, monkeypatch):
    told = []
    with pytest.warns(UserWarning, match="image dropped"):
        records = evaluate(
            [make_sampler("fixed:1")],
            three,
            [0],
            context,
            tmp_path,
            max_faults=2,
            on_fault=lambda job, fault: told.append((job.prompt.text, fault.error.cause)),
        )
    assert [record.prompt for record in records] == [TEXTS[0], TEXTS[2]]
    assert [text for text, _ in told] == [SICK] and fault[1] in told[0][1]
    monkeypatch.undo()
    again = evaluate([make_sampler("fixed:1")], three, [0], context, tmp_path)
    assert [record.prompt for record in again] == TEXTS
    # A part with another sampler is separate, and so are its records.
    unnamed = {"variant": "", "uid": "", "identity": None}
    made = [replace(record, **unnamed) for record in (again[0], again[2])]
    assert_records_alike(made, [replace(record, **unnamed) for record in records])


@pytest.mark.parametrize("kind", [to_nan, to_error])
def test_a_judge_that_fails_on_one_image_loses_that_record_only(kind, context, three, tmp_path, monkeypatch):
    judge = context.judges.scorers["sharpness"]
    monkeypatch.setattr(judge, "score", scores_with(judge, SICK, kind))
    with pytest.warns(UserWarning, match="judge sharpness"):
        records = evaluate([make_sampler("fixed:1")], three, [0], context, tmp_path, max_faults=1)
    assert [record.prompt for record in records] == [TEXTS[0], TEXTS[2]]
    with pytest.raises(AdDiffusionError, match="judge sharpness"):
        evaluate([make_sampler("fixed:1")], three, [0], context, tmp_path)


# ---------------------------------------------------------------- memory
@pytest.fixture(scope="module")
def whole(emoji, scorers, three):
    """Images with previews, of whole batches."""
    return images(Engine(emoji, scorers), emoji, three, looks=True)


@pytest.mark.parametrize("part", ["predict", "preview", "decode"])
def test_calls_are_halved_until_they_fit(part, whole, emoji, scorers, three, monkeypatch):
    seen = []
    monkeypatch.setattr(emoji, part, memory_for(getattr(emoji, part), 1, seen))
    engine = Engine(emoji, scorers, halve=True)
    with pytest.warns(UserWarning, match="ran out of memory .* 3 lanes at once: continuing with 1 per call"):
        found = images(engine, emoji, three, looks=True)
    assert engine.max_batch == 1 and set(seen) == {1}
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one.image.tensor, other.image.tensor, atol=1e-3, rtol=0)


def test_a_device_too_small_for_one_lane_is_an_error(emoji, scorers, three, monkeypatch):
    monkeypatch.setattr(emoji, "predict", memory_for(emoji.predict, 0, []))
    with pytest.warns(UserWarning), pytest.raises(DeviceMemoryError, match=": 1 lanes of backbone 'emoji'"):
        images(Engine(emoji, scorers, halve=True), emoji, three)


def test_environment_and_evaluation_halve_too(emoji, context, three, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(emoji, "predict", memory_for(emoji.predict, 2, seen))
    env = AdDiffusionVectorEnv(3, backbone=emoji, **SETTINGS, halve_lanes=True)
    with pytest.warns(UserWarning, match="continuing with 1 per call"):
        stepped(env, [0, 0, 0])
    with pytest.warns(UserWarning, match="continuing with 1 per call"):
        records = evaluate([make_sampler("fixed:1")], three, [0], context, tmp_path, max_lanes="auto")
    assert len(records) == 3 and max(seen) <= 2


def test_auto_is_a_number_of_lanes():
    assert lanes_of("auto") == (AUTO_LANES, True) and lanes_of(3) == (3, False)
    for wrong in (0, "some", True, 2.5):
        with pytest.raises(ConfigError, match="max_lanes must be at least 1, or auto"):
            lanes_of(wrong, "max_lanes")

"""Infos have fixed keys, shapes and types from reset to the end, so that any client's buffer can store them."""

from dataclasses import replace

import diffusers
import gymnasium as gym
import numpy as np
import pytest
from zoo import ZOO

from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_env.envs.settings import refine_config
from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv
from addiffusion_env.tabular.mdp import Transitions

CHEAP = {"steps": 3, "early_exit_steps": 0, "guidance_scale": 1.0}
KINDS = {
    "off": {"refine": "off"},
    "a region": {"refine": "as_published"},
    "checked tries": {"refine": {"preset": "resample_keep_best", "return_to": 2}, "check_finished": True},
    "blind": {"refine": "resample", "observation_keys": "denoiser", "reward": {"terminal_bonus": 1.0}},
    "cut": {"refine": "off", "max_decisions": 2},
}


def form(value):
    """Type and shape, of dicts by key."""
    if isinstance(value, dict):
        return {key: form(entry) for key, entry in value.items()}
    return (type(value), value.dtype, value.shape) if isinstance(value, np.ndarray) else type(value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_info_of_two_episodes_has_the_same_form(kind):
    env = AdDiffusionEnv(**CHEAP, **KINDS[kind])
    rng = np.random.default_rng(1)
    infos = [env.reset(seed=0)[1]]
    for _ in range(2):
        over = False
        while not over:
            action = int(rng.choice(np.flatnonzero(env.action_masks())))
            *_, terminated, truncated, info = env.step(action)
            infos.append(info)
            over = terminated or truncated
        assert info["has_image"] == info["image"].any() == terminated
        infos.append(env.reset()[1])
    assert all(form(info) == form(infos[0]) for info in infos)
    assert ("refine_mask" in infos[0]) == (kind == "a region")
    assert all(info["fault"] == "" for info in infos)


def test_what_is_in_an_info():
    env = AdDiffusionEnv(**CHEAP, refine="as_published")
    _, first = env.reset(seed=0)
    blank = {"action": -1, "illegal_action": False, "has_scores": False, "has_image": False, "nfe": 0.0}
    assert {key: first[key] for key in blank} == blank
    assert not first["image"].any() and not first["refine_mask"].any() and set(first["reward_terms"].values()) == {0}
    assert first["action_trace"].tolist() == [-1] * 7 and first["image"].shape == (64, 64, 3)
    env.step(0)
    *_, again = env.step(2)
    assert again["action_trace"].tolist() == [0, 2, -1, -1, -1, -1, -1]
    assert again["has_scores"] and again["refine_mask"].max() > 0.5 and first["refine_mask"].max() == 0
    kept = again["refine_mask"].copy()
    again["refine_mask"][:] = 7  # a copy: the lane's mask is unchanged
    np.testing.assert_array_equal(env.episodes.lane(0).refine_mask, kept)
    _, reward, *_, last = env.step(1)
    assert sum(last["reward_terms"].values()) == pytest.approx(reward) and last["image"].any()
    assert isinstance(last["nfe"], float) and last["nfe"].dtype == np.float64  # a Python float that TorchRL can read


def test_a_trace_holds_the_longest_episode():
    for refine in ("off", "resample", "resample_short", {"preset": "resample_keep_best", "limit": 3}):
        config = refine_config(refine)
        process = ProcessConfig(steps=4, check_finished=config.accept == "best", refine=config)
        env = AdDiffusionEnv(**{**CHEAP, "steps": 4}, refine=config, check_finished=process.check_finished)
        env.reset(seed=0)
        over = False
        while not over:  # refine whenever it is legal, else continue
            masks = env.action_masks()
            over = env.step(2 if masks[2] else 0 if masks[0] else 1)[2]
        assert 0 < len(env.episodes.lane(0).actions) <= process.longest_episode


class Pipeline(PipelineBackbone):
    """A pipeline whose images are scored without a download."""

    traits = replace(PipelineBackbone.traits, scorers="addiffusion_env.scorers.emoji:EmojiScorers")


@pytest.mark.parametrize(("kind", "evaluations"), [("HeunDiscreteScheduler", 5), ("PNDMScheduler", 4)])
def test_a_trace_of_more_evaluations_than_steps(kind, evaluations):
    """Second-order schedulers and diffusers' PNDM, the one that SD 1.5 comes with, evaluate more often than steps."""
    pipe = ZOO["sd15"]()
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, skip_prk_steps=True)
    backbone = Pipeline(pipe, {"height": 64, "width": 64})
    env = AdDiffusionEnv(backbone=backbone, steps=3, refine="off")
    env.reset(seed=0, options={"prompt": "a dog"})
    over = False
    while not over:
        _, _, over, _, info = env.step(0)
    assert info["action_trace"].tolist() == [0] * evaluations and info["nfe"] == evaluations
    again = {"refine": {"preset": "resample_keep_best", "return_to": 0}, "check_finished": True}
    process = replace(env.episodes.settings, **again).process(backbone.capabilities, backbone.name).counted(backbone)
    places = 2 * (evaluations - 1) + 2  # an early exit from each decision, the start's and the end
    assert Transitions.of(backbone, process).legal.shape[1] == places + 1


def test_buffers_made_from_the_first_info_hold_all():
    """As Tianshou's buffer, Minari's collector and NumPy stacks do."""
    env = gym.make("AdDiffusion-Emoji-v0", **CHEAP, refine="as_published")
    infos = [env.reset(seed=0)[1]]
    infos += [env.step(action)[4] for action in (0, 2, 0, 0)]
    buffer = {key: np.zeros((5, *np.shape(value)), np.asarray(value).dtype) for key, value in infos[0].items()}
    numbers = [key for key, value in buffer.items() if value.dtype.kind in "biuf"]
    for row, info in enumerate(infos):
        for key in numbers:
            buffer[key][row] = info[key]
    assert {"action_trace", "image", "refine_mask", "nfe", "has_scores"} <= set(numbers)
    assert buffer["has_image"].tolist() == [False] * 4 + [True]
    np.testing.assert_array_equal(buffer["image"][-1], infos[-1]["image"])
    assert [int((row >= 0).sum()) for row in buffer["action_trace"]] == [0, 1, 2, 3, 4]


def test_vector_infos_have_every_key_of_every_lane():
    env = AdDiffusionVectorEnv(2, **CHEAP, refine="off")
    _, first = env.reset(seed=0)
    for actions in ([0, 1], [1, 0]):
        *_, infos = env.step(np.array(actions))
        assert set(infos) == {*first, "final_obs", "_final_obs", "final_info", "_final_info"}
        assert form({key: infos[key] for key in first}) == form(first)
        assert all(infos[key].all() for key in first if key.startswith("_"))
        assert set(infos["final_info"]) == set(first)

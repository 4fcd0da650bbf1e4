"""The scalar environment: the API, the three actions, determinism, refusals."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_env.errors import (
    AdDiffusionError,
    ConfigError,
    EpisodeOverError,
    IllegalActionError,
    PromptError,
    UnexpectedKeywordError,
    UnknownNameError,
)


@pytest.fixture
def env():
    return AdDiffusionEnv(steps=3, refine="resample_short")


def rollout(env, actions, seed=0, **kwargs):
    observation, info = env.reset(seed=seed, **kwargs)
    trail = [(observation, 0.0, False, False, info)]
    for action in actions:
        trail.append(env.step(action))
        if trail[-1][2]:
            break
    return trail


def test_checkers_of_gymnasium_and_sb3_pass():
    """Of AdDiffusion-Emoji-v1 too: `python -m addiffusion_env check` in tests/test_command_line.py."""
    env = gym.make("AdDiffusion-Emoji-v0", steps=2)
    check_env(env.unwrapped, skip_render_check=True)
    sb3_check_env(env.unwrapped)


def test_make_by_module_name():
    assert gym.make("addiffusion_env:AdDiffusion-Emoji-v0", steps=2).action_space == gym.spaces.Discrete(3)


def test_observation_is_the_specified_dict(env):
    observation, _ = env.reset(seed=0)
    assert {key: value.shape for key, value in observation.items()} == {
        "clip": (256,),
        "timestep": (128,),
        "quality": (8,),
    }
    assert all(value.dtype == np.float32 for value in observation.values())
    assert not observation["clip"][:128].any()  # no image yet
    assert np.linalg.norm(observation["clip"][128:]) == pytest.approx(1, abs=1e-4)  # but a prompt


def test_continue_to_the_end(env):
    trail = rollout(env, [0] * 9)
    assert [row[2] for row in trail] == [False, False, False, True]
    last = trail[-1][4]
    assert (last["nfe"], last["network_calls"]) == (3, 6)
    assert last["action_trace"].tolist() == [0, 0, 0, *[-1] * 4]  # three steps and four refinements at most
    assert last["image"].shape == (64, 64, 3) and last["image"].dtype == np.uint8
    assert sum(last["reward_terms"].values()) == pytest.approx(trail[-1][1])


def test_stop_terminates_with_a_finished_image(env):
    trail = rollout(env, [0, 1])
    assert trail[-1][2] and not trail[-1][3]
    assert trail[-1][4]["nfe"] == 3  # one step, and an early exit in two


def test_refine_costs_nfe_and_keeps_the_step(env):
    trail = rollout(env, [0, 2, 0])
    before, after = trail[1][4], trail[2][4]
    assert after["nfe"] - before["nfe"] == 2
    assert after["sigma"] == before["sigma"] and after["step"] == before["step"]
    assert after["refinements"] == 1


def test_the_same_seed_gives_the_same_episodes(env):
    first = rollout(env, [0, 2, 0, 0])
    second_episode = env.reset()[1]
    again = rollout(env, [0, 2, 0, 0])
    for a, b in zip(first, again, strict=True):
        assert a[1] == b[1]
        np.testing.assert_array_equal(a[0]["quality"], b[0]["quality"])
    np.testing.assert_array_equal(first[-1][4]["image"], again[-1][4]["image"])
    assert env.reset()[1]["prompt_id"] == second_episode["prompt_id"]


def test_options_choose_prompt_id_seed_and_cost(env):
    options = {"prompt": "a photo of a red cup", "prompt_id": "mine", "seed": 7, "cost_per_nfe": 0.5}
    info = rollout(env, [], options=options)[0][4]
    assert {key: info[key] for key in options} == options


def test_illegal_actions(env):
    env.reset(seed=0)
    *_, info = env.step(2)  # no image to refine yet: continues, and reports it
    assert info["illegal_action"] and info["action"] == 0 and info["refinements"] == 0
    with pytest.raises(IllegalActionError, match=r"action 3 is none of 0, 1, 2"):
        env.step(3)
    strict = AdDiffusionEnv(steps=3, refine="resample_short", strict=True)
    strict.reset(seed=0)
    assert strict.action_masks().tolist() == [True, True, False]
    with pytest.raises(IllegalActionError, match="refine is not legal at step 0"):
        strict.step(2)


def test_steps_before_reset_and_after_the_end_are_refused():
    env = AdDiffusionEnv(steps=2)
    with pytest.raises(EpisodeOverError, match="stepped before reset"):
        env.step(0)
    rollout(env, [1])
    with pytest.raises(EpisodeOverError, match="after its episode ended"):
        env.step(0)


def test_an_outside_limit_truncates():
    env = AdDiffusionEnv(steps=3, max_decisions=2)
    trail = rollout(env, [0, 0])
    assert [row[3] for row in trail] == [False, False, True]
    assert not trail[-1][4]["has_image"] and not trail[-1][4]["image"].any()
    with pytest.raises(EpisodeOverError, match="after its episode ended"):
        env.step(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"promt": "a dog"}, "no option 'promt'\n  -> did you mean 'prompt'"),
        ({"prompt_id": "x"}, "without a prompt"),
        ({"cost_per_nfe": -0.1}, r"cost_per_nfe is -0\.1\n  -> give a number, 0 or more"),
        ({"cost_per_nfe": float("nan")}, "cost_per_nfe is nan"),
        ({"seed": "a"}, "seed is 'a'\n  -> give a whole number"),
        ({"seed": 2.5}, r"seed is 2\.5"),
    ],
)
def test_bad_reset_options(env, options, message):
    with pytest.raises(AdDiffusionError, match=message):
        env.reset(seed=0, options=options)


def test_a_users_prompt_has_the_noise_of_the_grammars_prompt(env):
    from addiffusion_env.prompts.emoji_grammar import emoji_prompt

    _, info = env.reset(seed=0, options={"prompt": "a photo of a dog"})
    assert info["prompt_id"] == emoji_prompt("a photo of a dog").prompt_id


def test_a_frame_of_a_long_episode_can_be_drawn():
    from addiffusion_env.envs.rendering import render_frame

    assert render_frame(np.zeros((64, 64, 3), np.uint8), [0] * 500, 500.0, "long").shape == (296, 256, 3)


def test_a_drawn_cost_is_observed():
    env = AdDiffusionEnv(steps=2, cost_per_nfe=[0.01, 0.03])
    observation, info = env.reset(seed=1)
    assert 0.01 <= info["cost_per_nfe"] <= 0.03
    assert observation["cost_per_nfe"][0] == pytest.approx(info["cost_per_nfe"] / 0.03)


def test_a_prompt_that_is_too_long_is_refused(env):
    with pytest.raises(PromptError, match="the text window holds 32"):
        env.reset(seed=0, options={"prompt": "a dog and " * 20})


def test_render_shows_preview_and_strip():
    env = AdDiffusionEnv(steps=2, render_mode="rgb_array")
    env.reset(seed=0)
    start = env.render()
    env.step(0)
    after = env.render()
    assert start.shape == after.shape == (296, 256, 3) and after.dtype == np.uint8
    assert (after != start).mean() > 0.1
    assert tuple(after[264, 6]) == (70, 130, 200)  # the continue square


@pytest.mark.parametrize(
    ("settings", "error", "wrong"),
    [  # names: their sentence is that of tests/test_core.py
        ({"backbone": "emojy"}, UnknownNameError, "'emojy'"),
        ({"stepz": 3}, UnexpectedKeywordError, "'stepz'"),
        ({"reward": "defalt"}, UnknownNameError, "'defalt'"),
        ({"reward": {"nfe_prise": 1}}, UnknownNameError, "'nfe_prise'"),
        ({"refine": "retri"}, UnknownNameError, "'retri'"),
        ({"refine": {"blurr": 1}}, ConfigError, "'blurr'"),
        ({"solver": "ddmi"}, UnknownNameError, "'ddmi'"),
        ({"spacing": "trailling"}, UnknownNameError, "'trailling'"),
        ({"prompts": "emojis"}, UnknownNameError, "'emojis'"),
        ({"render_mode": "rgb"}, UnknownNameError, "'rgb'"),
        ({"observation_keys": ["clip", "qualty"]}, UnknownNameError, "'qualty'"),
        ({"dtype": "float8"}, ConfigError, "'float8'"),
        ({"prompt_options": {"splt": "test"}}, ConfigError, "'splt'"),
        ({"backbone_options": {"tile": True}}, ConfigError, "'tile'"),
    ],
)
def test_a_mistyped_name_is_refused(settings, error, wrong):
    with pytest.raises(error) as caught:
        AdDiffusionEnv(**settings)
    assert type(caught.value) is error and wrong in caught.value.cause and "known: " in caught.value.remedy


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"device": "cuba"}, "unknown device 'cuba'\n  -> use auto, cpu, cuda"),
        ({"reward": {"terminal_bonus": {"centr": 1}}}, "'terminal_bonus' 'centr'\n  -> did you mean 'centre'"),
        ({"cost_per_nfe": [0.3, 0.1]}, "cost_per_nfe must be .* with 0 <= low <= high"),
        ({"cost_per_nfe": float("inf")}, "cost_per_nfe must be a finite number .*, got inf"),
        ({"observation_keys": []}, r"observation_keys has no key, got \[\]"),
        ({"decide_at": [2], "decide_every": 5}, r"decide_at=\[2\] and decide_every=5 .*\n  -> set decide_every=1"),
        ({"prompts": ["a dog", 3]}, "prompts must be str or a list of str or Prompt or PromptSource or null"),
        ({"prompts": "text_file", "prompt_options": {"tasks": 1}}, r"has no option 'tasks', got .*\n  -> leave it out"),
        ({"dtype": "float16"}, "float16 was requested on the CPU"),
        ({"steps": 5000}, "steps must be 1 to 1000, got 5000"),
        ({"max_decisions": 0}, "max_decisions must be at least 1, got 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, sentence):
    with pytest.raises(AdDiffusionError, match=sentence):
        AdDiffusionEnv(**settings)


def test_an_unknown_keyword_is_a_type_error_too():
    """TorchRL expects this error before it retries without its ``frameskip``."""
    message = r"got an unexpected keyword argument 'stepz'.*\n  -> did you mean 'steps'"
    for make in (AdDiffusionEnv, lambda **settings: gym.make("AdDiffusion-Emoji-v0", **settings)):
        with pytest.raises(TypeError, match=message) as caught:
            make(stepz=3)
        assert isinstance(caught.value, ConfigError)

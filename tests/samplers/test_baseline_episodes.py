"""What each sampler spends and decides, on the embedded backbone."""

from dataclasses import replace

import pytest
import torch

from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import open_lane
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import ConfigError
from addiffusion_env.prompts import Prompt
from addiffusion_env.prompts.emoji_grammar import emoji_prompt
from addiffusion_env.samplers import make_sampler
from addiffusion_env.samplers.base import SEED_STRIDE
from addiffusion_env.samplers.prompt_rule import names_colour
from addiffusion_env.samplers.random_stop import RandomStop, _uniform

BASE = ProcessConfig(steps=6)


def make(spec, emoji, scorers, prompts, seeds=(0,)):
    sampler = make_sampler(spec)
    sampler.bind(emoji, scorers)
    process = sampler.process(BASE)
    engine = Engine(emoji, scorers, solver=process.solver, decider=sampler.decide)
    return engine.run([sampler.coroutine(emoji, process, prompt, seed) for prompt in prompts for seed in seeds])


def preference(episode):
    return float(episode.image.scores.preference[0])


def test_fixed_steps_continue_to_the_end_and_cost_what_they_say(emoji, scorers, prompts):
    (episode,) = make("fixed:3", emoji, scorers, prompts[:1])
    assert episode.lane.actions == (0, 0, 0)
    assert (episode.lane.nfe, episode.lane.calls) == (3, 6)
    process = make_sampler("fixed:3,leading,dpmpp_2m").process(BASE)
    assert (process.steps, process.spacing, process.solver) == (3, "leading", "dpmpp_2m")
    assert process.guidance_scale == BASE.guidance_scale


def test_a_constant_stop_lands_as_the_process_does(emoji, scorers, prompts):
    (episode,) = make("stop:2", emoji, scorers, prompts[:1])
    assert episode.lane.actions == (0, 0, 1)
    assert 2 < episode.lane.nfe <= 6
    with pytest.raises(ConfigError, match="never stops on a schedule of 6 evaluations"):
        make_sampler("stop:6").process(BASE)


def test_the_prompt_rule_sees_colours_and_not_fruit(emoji, scorers, prompts):
    assert names_colour(emoji_prompt("a photo of a red cup and a blue clock"))
    assert not names_colour(emoji_prompt("a photo of two oranges"))
    assert names_colour(Prompt.of("A Green dream over the sea"))
    episodes = make("prompt_rule:3,2", emoji, scorers, prompts[:2])
    assert [episode.lane.nfe for episode in episodes] == [2, 3]


def test_best_of_keeps_the_best_and_pays_for_all(emoji, scorers, prompts):
    prompt = prompts[:1]
    singles = [make("fixed:2", emoji, scorers, prompt, [seed])[0] for seed in (5, 5 + SEED_STRIDE, 5 + 2 * SEED_STRIDE)]
    (episode,) = make("best_of:3x2", emoji, scorers, prompt, [5])
    best = max(singles, key=preference)
    assert (episode.lane.nfe, episode.lane.calls) == (6, 12)
    assert torch.allclose(episode.image.tensor, best.image.tensor, atol=1e-4)
    assert len({preference(single) for single in singles}) == 3  # new noise makes new images


def test_threshold_retry_stops_when_it_is_content(emoji, scorers, prompts):
    prompt = prompts[3:4]
    attempts = [make("fixed:2", emoji, scorers, prompt, [SEED_STRIDE * j])[0] for j in range(3)]
    liked = [preference(episode) for episode in attempts]
    (content,) = make("threshold_resample:-99,2,3", emoji, scorers, prompt)
    (never,) = make("threshold_resample:99,2,3", emoji, scorers, prompt)
    assert (content.lane.nfe, never.lane.nfe) == (2, 6)
    assert preference(content) == pytest.approx(liked[0], abs=1e-3)
    assert preference(never) == pytest.approx(max(liked), abs=1e-3)
    if liked[1] > liked[0]:
        between = (liked[0] + liked[1]) / 2
        assert make(f"threshold_resample:{between},2,3", emoji, scorers, prompt)[0].lane.nfe == 4


def test_random_stops_are_the_images_own_and_as_frequent_as_asked(emoji, scorers, prompts):
    together = make("random:0.4", emoji, scorers, prompts[:3])
    alone = [make("random:0.4", emoji, scorers, [prompt])[0] for prompt in prompts[:3]]
    assert [e.lane.actions for e in together] == [e.lane.actions for e in alone]
    lane = open_lane(emoji, BASE, prompts[0], 0)
    share = sum(_uniform(replace(lane, seed=seed)) < 0.1 for seed in range(600)) / 600
    assert 0.06 < share < 0.14  # three standard deviations
    assert RandomStop(0.0).process(BASE).refine.enabled is False

"""The traces of a report are what the environment pays for the same actions."""

import pytest

from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.observers import Decisions, observed
from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_env.evaluation.filmstrips import Filmstrip, terms_of
from addiffusion_env.evaluation.runner import EvaluationContext, plan
from addiffusion_env.prompts.emoji_grammar import emoji_prompt
from addiffusion_env.samplers import make_sampler

PROMPT = emoji_prompt("a photo of an elephant left of a giraffe")


@pytest.fixture
def watched(emoji, scorers):
    """(sampler, its decisions, episode) of the shipped policy on one prompt."""
    sampler = make_sampler("policy:emoji@0.01")
    context = EvaluationContext(emoji, scorers, sampler.settings().process(emoji.capabilities, emoji.name))
    entry = plan([sampler], [PROMPT], [3], context)[0]
    decisions = Decisions()
    engine = Engine(emoji, scorers, decider=sampler.decide)
    (episode,) = engine.run([observed(sampler.coroutine(emoji, entry.process, PROMPT, 3), [decisions])])
    return sampler, decisions, episode


def test_a_trace_is_what_the_environment_pays(watched):
    sampler, decisions, episode = watched
    assert decisions.actions == list(episode.lane.actions)
    terms = terms_of(sampler, decisions, episode)
    env = AdDiffusionEnv(**sampler.config.environment)
    env.reset(seed=0, options={"prompt": PROMPT.text, "prompt_id": PROMPT.prompt_id, "seed": 3, "cost_per_nfe": 0.01})
    total = 0.0
    for place, action in enumerate(episode.lane.actions):
        _, reward, ended, _, info = env.step(action)
        total += reward
        for name, values in terms.items():
            assert values[place] == pytest.approx(info["reward_terms"][name], abs=2e-3), (place, name)
    assert ended
    assert sum(sum(values) for values in terms.values()) == pytest.approx(total, abs=5e-3)
    assert {"terminal_bonus", "nfe_cost"} <= set(terms)


def test_a_sampler_that_has_no_reward_has_no_trace(watched):
    _, decisions, episode = watched
    assert terms_of(make_sampler("fixed:2"), decisions, episode) == {}


def test_traces_are_drawn():
    from addiffusion_env.evaluation.plots import load_pyplot, png_of, reward_terms

    filmstrip = Filmstrip(
        "u", "policy:a@0", "best", (), (0, 2, 1), (), {"nfe_cost": (-0.1, -0.2, 0.0), "bonus": (0.0, 0.0, 1.0)}
    )
    pyplot = load_pyplot()
    png = png_of(pyplot, reward_terms(pyplot, [filmstrip, filmstrip]))
    assert png.startswith(b"\x89PNG")

"""A policy among the samplers, and what may be taken from it: the text that it reads, or refine."""

import pytest

from addiffusion_env.engine.process import Action
from addiffusion_env.errors import ConfigError, UnknownNameError
from addiffusion_env.evaluation.runner import EvaluationContext, plan
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts, emoji_prompt
from addiffusion_env.samplers import make_sampler

PROMPTS = [emoji_prompt(text) for text in ("a photo of a dog", "two red cups", "a photo of a blue bus")]


@pytest.fixture
def context(emoji, scorers):
    process = make_sampler("policy:emoji").settings().process(emoji.capabilities, emoji.name)
    return EvaluationContext(emoji, scorers, process)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("policy:emoji", "policy:emoji@0.03"),
        ("policy:emoji@0.010,shuffled", "policy:emoji@0.01,shuffled"),
        ("policy:emoji,no_refine", "policy:emoji@0.03,no_refine"),
        ("policy:emoji@0,no_refine,shuffled", "policy:emoji@0,shuffled,no_refine"),
    ],
)
def test_a_shipped_policy_is_named_after_cost_and_controls(spec, name):
    sampler = make_sampler(spec)
    assert sampler.name == name
    assert (sampler.shuffled, sampler.no_refine) == ("shuffled" in spec, "no_refine" in spec)
    assert len(sampler.fingerprint) == 64


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("policy:emoji@0.01,suffled", UnknownNameError, "did you mean 'shuffled'"),
        ("policy:emoji@0.01,shuffled,shuffled", ConfigError, "twice"),
        ("policy:emoji@cheap", ConfigError, "must be a number"),
    ],
)
def test_a_misspelt_control_is_refused(spec, error, words):
    with pytest.raises(error, match=words):
        make_sampler(spec)


def test_every_prompt_is_shown_another_whatever_the_order(context):
    sampler, again = make_sampler("policy:emoji@0,shuffled"), make_sampler("policy:emoji@0,shuffled")
    first, second = plan([sampler], PROMPTS, [0], context)[0], plan([again], PROMPTS[::-1], [0], context)[0]
    assert sampler._shown == again._shown
    assert all(shown.prompt_id != own for own, shown in sampler._shown.items())
    assert sorted(p.prompt_id for p in sampler._shown.values()) == sorted(sampler._shown)
    assert first.variant == second.variant != plan([make_sampler("policy:emoji@0")], PROMPTS, [0], context)[0].variant
    # Among other prompts it is shown others: those are other images, so they have other records.
    assert plan([again], PROMPTS[:2], [0], context)[0].variant != first.variant


def test_one_prompt_cannot_be_shuffled(context):
    with pytest.raises(ConfigError, match="cannot be shuffled"):
        plan([make_sampler("policy:emoji@0,shuffled")], PROMPTS[:1], [0], context)


def test_a_policy_that_may_not_refine_never_does(context):
    from addiffusion_env.engine.engine import Engine

    taken, prompts = {}, EmojiPrompts(split="test").take(3, seed=0)  # docs/filmstrips.png: some of them are resampled
    for spec in ("policy:emoji@0", "policy:emoji@0,no_refine"):
        entry = plan([make_sampler(spec)], prompts, [0], context)[0]
        engine = Engine(context.backbone, context.scorers, decider=entry.sampler.decide)
        episodes = engine.run(entry.sampler.coroutine(context.backbone, entry.process, p, 0) for p in prompts)
        taken[spec] = [action for episode in episodes for action in episode.lane.actions]
    assert Action.REFINE in taken["policy:emoji@0"]
    assert Action.REFINE not in taken["policy:emoji@0,no_refine"]


def test_a_shuffled_policy_sees_the_text_of_the_other_prompt(context, monkeypatch):
    """Everything else that it sees stays its own."""
    from addiffusion_env.engine.engine import Engine

    seen = {}
    for spec in ("policy:emoji@0", "policy:emoji@0,shuffled"):
        entry = plan([make_sampler(spec)], PROMPTS, [0], context)[0]
        observe = entry.sampler._observer.observe
        frames = []
        monkeypatch.setattr(entry.sampler._observer, "observe", lambda f, o=observe, to=frames: (to.append(f), o(f))[1])
        engine = Engine(context.backbone, context.scorers, decider=entry.sampler.decide)
        engine.run(entry.sampler.coroutine(context.backbone, entry.process, p, 0) for p in PROMPTS)
        seen[spec] = frames[0]
    own, other = seen.values()
    texts = context.scorers.clip.embed_texts(PROMPTS).numpy()
    assert abs(own.clip_text - texts).max() < 1e-5
    assert abs(other.clip_text - texts).max() > 0.1
    for name in ("clip_image", "clip_score", "preference", "log_snr", "cost_per_nfe"):
        assert (getattr(other, name) == getattr(own, name)).all()


def test_a_calibrator_reads_the_other_prompt_too(context):
    """The shipped policy sees a calibrator that knows prompts; shown another prompt it believes something else."""
    from addiffusion_env.engine.engine import Engine

    sampler = make_sampler("policy:emoji@0,shuffled")
    entry = plan([sampler], PROMPTS, [0], context)[0]
    lanes = []

    def watch(requests):
        lanes.extend(request.lane for request in requests if request.lane.scores is not None)
        return sampler.decide(requests)

    Engine(context.backbone, context.scorers, decider=watch).run(
        [sampler.coroutine(context.backbone, entry.process, PROMPTS[0], 0)]
    )
    nothing = [None] * len(lanes)
    other = sampler._frame(lanes, nothing)
    sampler.shuffled = False
    own = sampler._frame(lanes, nothing)
    assert (own.preference == other.preference).all()
    assert abs(own.utility - other.utility).min() > 1e-3
    assert abs(own.prior - other.prior).min() > 1e-3

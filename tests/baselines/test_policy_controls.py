"""A policy among the methods, and what may be taken from it: the text that it reads, or refine."""

import pytest

from addiffusion_env.baselines import make_method
from addiffusion_env.engine.process import Action
from addiffusion_env.errors import ConfigError, UnknownNameError
from addiffusion_env.evaluation.runner import Stage, plan
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts, emoji_prompt

PROMPTS = [emoji_prompt(text) for text in ("a photo of a dog", "two red cups", "a photo of a blue bus")]


@pytest.fixture
def stage(emoji, scorers):
    process = make_method("policy:emoji").settings().process(emoji.capabilities, emoji.name)
    return Stage(emoji, scorers, process)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("policy:emoji", "policy:emoji@0.015"),
        ("policy:emoji@0.010,shuffled", "policy:emoji@0.01,shuffled"),
        ("policy:emoji,no_refine", "policy:emoji@0.015,no_refine"),
        ("policy:emoji@0,no_refine,shuffled", "policy:emoji@0,shuffled,no_refine"),
    ],
)
def test_a_shipped_policy_is_named_after_price_and_controls(spec, name):
    method = make_method(spec)
    assert method.name == name
    assert (method.shuffled, method.no_refine) == ("shuffled" in spec, "no_refine" in spec)
    assert len(method.fingerprint) == 64


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
        make_method(spec)


def test_every_prompt_is_shown_another_whatever_the_order(stage):
    method, again = make_method("policy:emoji@0,shuffled"), make_method("policy:emoji@0,shuffled")
    first, second = plan([method], PROMPTS, [0], stage)[0], plan([again], PROMPTS[::-1], [0], stage)[0]
    assert method._shown == again._shown
    assert all(shown.prompt_id != own for own, shown in method._shown.items())
    assert sorted(p.prompt_id for p in method._shown.values()) == sorted(method._shown)
    assert first.variant == second.variant != plan([make_method("policy:emoji@0")], PROMPTS, [0], stage)[0].variant
    # Among other prompts it is shown others: those are other pictures, so they have other records.
    assert plan([again], PROMPTS[:2], [0], stage)[0].variant != first.variant


def test_one_prompt_cannot_be_shuffled(stage):
    with pytest.raises(ConfigError, match="cannot be shuffled"):
        plan([make_method("policy:emoji@0,shuffled")], PROMPTS[:1], [0], stage)


def test_a_policy_that_may_not_refine_never_does(stage):
    from addiffusion_env.engine.engine import Engine

    taken, prompts = {}, EmojiPrompts(split="test").take(3, seed=0)  # docs/films.png: it tries some of them again
    for spec in ("policy:emoji@0", "policy:emoji@0,no_refine"):
        entry = plan([make_method(spec)], prompts, [0], stage)[0]
        engine = Engine(stage.backbone, stage.scorers, decider=entry.method.decide)
        episodes = engine.run(entry.method.program(stage.backbone, entry.process, p, 0) for p in prompts)
        taken[spec] = [action for episode in episodes for action in episode.lane.actions]
    assert Action.REFINE in taken["policy:emoji@0"]
    assert Action.REFINE not in taken["policy:emoji@0,no_refine"]


def test_a_shuffled_policy_sees_the_text_of_the_other_prompt(stage, monkeypatch):
    """Everything else that it sees stays its own."""
    from addiffusion_env.engine.engine import Engine

    seen = {}
    for spec in ("policy:emoji@0", "policy:emoji@0,shuffled"):
        entry = plan([make_method(spec)], PROMPTS, [0], stage)[0]
        observe = entry.method._observer.observe
        frames = []
        monkeypatch.setattr(entry.method._observer, "observe", lambda f, o=observe, to=frames: (to.append(f), o(f))[1])
        engine = Engine(stage.backbone, stage.scorers, decider=entry.method.decide)
        engine.run(entry.method.program(stage.backbone, entry.process, p, 0) for p in PROMPTS)
        seen[spec] = frames[0]
    own, other = seen.values()
    texts = stage.scorers.clip.embed_texts(PROMPTS).numpy()
    assert abs(own.clip_text - texts).max() < 1e-5
    assert abs(other.clip_text - texts).max() > 0.1
    for name in ("clip_image", "clip_score", "preference", "log_snr", "price"):
        assert (getattr(other, name) == getattr(own, name)).all()


def test_a_belief_reads_the_other_prompt_too(stage):
    """The shipped policy sees a belief that knows prompts; shown another prompt it believes something else."""
    from addiffusion_env.engine.engine import Engine

    method = make_method("policy:emoji@0,shuffled")
    entry = plan([method], PROMPTS, [0], stage)[0]
    lanes = []

    def watch(requests):
        lanes.extend(request.lane for request in requests if request.lane.look is not None)
        return method.decide(requests)

    Engine(stage.backbone, stage.scorers, decider=watch).run(
        [method.program(stage.backbone, entry.process, PROMPTS[0], 0)]
    )
    nothing = [None] * len(lanes)
    own, other = method._seen(lanes, nothing), method._misread(lanes, nothing)
    assert (own.preference == other.preference).all()
    assert abs(own.liking - other.liking).min() > 1e-3

"""A contract that nothing can break says nothing: each is broken once, on purpose."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from addiffusion_env.backbones.emoji import EmojiBackbone
from addiffusion_env.backbones.solvers import ddim_step
from addiffusion_env.checks.backbones import BACKBONE_CONTRACTS
from addiffusion_env.checks.base import hold, promise, refuses
from addiffusion_env.checks.prompts import PROMPT_CONTRACTS
from addiffusion_env.checks.rewards import REWARD_CONTRACTS
from addiffusion_env.checks.scorers import SCORER_CONTRACTS
from addiffusion_env.checks.solvers import SOLVER_CONTRACTS
from addiffusion_env.errors import ContractError, PromptError
from addiffusion_env.prompts import Prompt, PromptList
from addiffusion_env.rewards import PreferenceGain, RewardTerm, TerminalBonus
from addiffusion_env.scorers import check_images
from addiffusion_env.scorers.sharpness import SharpnessScorer
from addiffusion_lab.metrics.contract import METRIC_CONTRACTS
from addiffusion_lab.metrics.paired import psnr


class OfAllLanes(RewardTerm):
    """Gives every lane the mean."""

    def __call__(self, transition):
        return np.full(len(transition.nfe), transition.nfe.mean())


class OneNumber(RewardTerm):
    """Pays one number."""

    def __call__(self, transition):
        return 1.0


class NanAtFirst(RewardTerm):
    """Pays for a gain without an image before."""

    def __call__(self, transition):
        return transition.clip_after - transition.clip_before


class InPlace(RewardTerm):
    """Changes what it was given."""

    def __call__(self, transition):
        np.multiply(transition.nfe, 2, out=transition.nfe)
        return transition.nfe.copy() / 2


@dataclass(frozen=True)
class BareSetting(RewardTerm):
    """Has a setting without a default."""

    weight: float


class Hiding(TerminalBonus):
    """Depends on preference without declaring it."""

    pays_by = ()


class Peeking(PreferenceGain):
    """Depends on previews without declaring it."""

    needs_preview = False


@pytest.mark.parametrize(
    ("term", "words"),
    [
        (OfAllLanes, "lane 0 gives"),
        (OneNumber, "gave the shape"),
        (NanAtFirst, "at the first step"),
        (InPlace, "was changed|lane 0 gives"),
        (BareSetting, "settings without a default: weight"),
        (Hiding, "it depends on preference"),
        (Peeking, "it depends on previews"),
    ],
)
def test_broken_reward_terms(term, words):
    with pytest.raises(ContractError, match=words):
        hold(REWARD_CONTRACTS, term)


class Nameless(SharpnessScorer):
    """Has no name."""

    name = ""


class Unitless(SharpnessScorer):
    """Has no unit."""

    unit = ""


class Relative(SharpnessScorer):
    """Scores against the rest of the batch."""

    def score(self, images, prompts):
        found = super().score(images, prompts)
        return found - found.mean()


class Double(SharpnessScorer):
    """Gives float64."""

    def score(self, images, prompts):
        return super().score(images, prompts).double()


class Gullible(SharpnessScorer):
    """Takes any number of prompts."""

    def score(self, images, prompts):
        return super().score(images, ["a"] * len(check_images(images)))


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        (Nameless(), "has no name"),
        (Unitless(), "has no unit"),
        (Relative(), "one by one|in another order"),
        (Double(), "float64"),
        (Gullible(), "three images with one prompt was accepted"),
    ],
)
def test_broken_scorers(scorer, words):
    with pytest.raises(ContractError, match=words):
        hold(SCORER_CONTRACTS, scorer)


class Counting(SharpnessScorer):
    """Counts its calls where its identity sees it."""

    calls = 0

    def score(self, images, prompts):
        self.calls += 1
        return super().score(images, prompts)


class Unreadable(SharpnessScorer):
    """Has an identity that no file can hold."""

    @property
    def identity(self):
        return {"made by": object()}


class Anonymous(SharpnessScorer):
    """Keeps its weights for itself."""

    def __init__(self):
        self.network = torch.nn.Linear(2, 2)

    @property
    def identity(self):
        return {"class": "Anonymous"}


class Careful(Anonymous):
    """Counts, and says so; describes its weights."""

    not_identity = ("calls",)
    identity = SharpnessScorer.identity
    calls = 0

    def score(self, images, prompts):
        self.calls += 1
        return super().score(images, prompts)


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        (
            Counting(),
            r"changes with use: calls: (nothing|\d+) -> \d+\n  -> list attributes that only cache in not_identity",
        ),
        (Unreadable(), "is not plain JSON"),
        (Anonymous(), "is the same with other weights"),
    ],
)
def test_identities_that_say_too_much_or_too_little(scorer, words):
    with pytest.raises(ContractError, match=words):
        hold(SCORER_CONTRACTS, scorer)


def test_an_honest_identity_holds_and_the_weights_are_put_back():
    scorer = Careful()
    before = scorer.network.weight.clone()
    assert len(hold(SCORER_CONTRACTS, scorer)) == len(SCORER_CONTRACTS)
    assert scorer.network.weight.equal(before)


class Broken(EmojiBackbone):
    """The emoji world with one sampler spoilt."""

    def __init__(self, whole, sampler, spoil):
        self.__dict__.update(whole.__dict__)
        honest = getattr(whole, sampler)
        setattr(self, sampler, lambda *args, **kwargs: spoil(honest(*args, **kwargs)))


@pytest.mark.parametrize(
    ("sampler", "spoil", "words"),
    [
        ("sigmas", lambda found: found[::-1], "make them decrease"),
        ("timestep_position", lambda found: 1 - found, "it gives 0"),
        ("predict", lambda found: replace(found, calls=found.calls + 1), "calls are"),
        ("predict", lambda found: replace(found, x0=torch.zeros_like(found.x0)), "guidance 4 changes nothing"),
        ("predict", lambda found: replace(found, x0=found.x0 - found.x0.mean()), "x0 of a single row"),
        ("predict", lambda found: replace(found, features=None), "define both or neither"),
        ("decode", lambda found: found * 2 + 1, "clamp to"),
        ("preview", lambda found: found.half(), "float16"),
    ],
)
def test_broken_backbones(sampler, spoil, words, emoji):
    with pytest.raises(ContractError, match=words):
        hold(BACKBONE_CONTRACTS, Broken(emoji, sampler, spoil))


class Restless(PromptList):
    """Draws from its own generator."""

    fresh = np.random.default_rng(0)

    def sample(self, rng):
        return self.prompts[int(self.fresh.integers(len(self.prompts)))]


TEXTS = [f"a dog and {count} cats" for count in range(32)]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (PromptList([Prompt("a", "one"), Prompt("b", "one")]), "are duplicates"),
        (PromptList([Prompt(" ", "blank")]), "is empty"),
        (Restless(TEXTS), "drew different prompts"),
        (object(), "is no PromptSource"),
    ],
)
def test_broken_sources(source, words):
    with pytest.raises(ContractError, match=words):
        hold(PROMPT_CONTRACTS, source)


def test_an_honest_source_holds():
    assert len(hold(PROMPT_CONTRACTS, PromptList(TEXTS))) == len(PROMPT_CONTRACTS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"higher_is_better": False}, "check higher_is_better"),
        ({"n": 1}, "n is 1"),
        ({"value": np.nan}, "value is nan"),
    ],
)
def test_broken_metrics(changes, words):
    def spoilt(images, reference, settings):
        """PSNR, spoilt."""
        return replace(psnr(images, reference, settings), **changes)

    with pytest.raises(ContractError, match=words):
        hold(METRIC_CONTRACTS, spoilt)


def test_broken_solvers():
    def short(path, latents, x0, sigma_next):
        return ddim_step(path, latents, 0.9 * x0, sigma_next)

    def of_the_batch(path, latents, x0, sigma_next):
        found = ddim_step(path, latents, x0, sigma_next)
        return found if bool((sigma_next == 0).all()) else replace(found, x=found.x - found.x.mean())

    for solver, words in ((short, "off the prediction"), (of_the_batch, "row 0 alone")):
        with pytest.raises(ContractError, match=words):
            hold(SOLVER_CONTRACTS, solver)


def test_what_is_promised_is_said_in_words():
    assert promise(BACKBONE_CONTRACTS[0]).startswith("A schedule of n steps")
    every = (*BACKBONE_CONTRACTS, *SCORER_CONTRACTS, *REWARD_CONTRACTS, *PROMPT_CONTRACTS, *METRIC_CONTRACTS)
    assert all(contract.__doc__ for contract in (*every, *SOLVER_CONTRACTS))


def test_a_refusal_of_another_kind_is_not_hidden():
    refuses(PromptError, lambda: PromptList([]), "an empty list")
    with pytest.raises(ZeroDivisionError):
        refuses(PromptError, lambda: 1 / 0, "a division")
    with pytest.raises(ContractError, match="nothing was accepted"):
        refuses(PromptError, lambda: torch.zeros(1), "nothing")

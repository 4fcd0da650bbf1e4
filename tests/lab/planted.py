"""Tables of synthetic images with planted effects, made in numpy: thousands a second."""

from functools import cache

import numpy as np
from eval_records import record
from scipy.stats import norm

from addiffusion_lab.claims.base import Case, Claims, ImageTable
from addiffusion_lab.claims.statistics import Margin

POLICY, CONTROL, PLAIN = "policy:emoji@0.01", "policy:emoji@0.01,shuffled", "policy:emoji@0.01,no_refine"


def margin(value=0.1, records_before=0, measure="correct"):
    return Margin(value, measure, "2026-11-01T00:00:00+00:00", records_before)


def table(correct, nfe, constraints=None):
    """One image per prompt: mappings sampler -> (P,) values."""
    samplers = tuple(nfe)
    prompts = len(next(iter(nfe.values())))
    columns = {
        "correct": np.array([np.asarray(correct.get(name, np.ones(prompts)), float) for name in samplers]),
        "nfe": np.array([np.asarray(nfe[name], float) for name in samplers]),
    }
    columns["seconds"] = columns["nfe"] / 10
    return ImageTable(
        samplers=samplers,
        prompt_ids=tuple(f"p{n:05d}" for n in range(prompts)),
        constraints=np.ones(prompts) if constraints is None else np.asarray(constraints, float),
        prompt=np.arange(prompts),
        columns=columns,
    )


MARGIN = margin()


def case(images, seed=0, judge="correct", limit=MARGIN, **claims):
    settings = {"policy": POLICY, "nfe_limit": 7.0, "resamples": 499, **claims}
    return Case(images, Claims(**settings), judge, limit, np.random.default_rng(seed))


def against_reference(draw, prompts, only_policy, only_reference, nfe=6.0):
    """H1: the shares of prompts on which only one of the two is correct; NFE scattered over four around ``nfe``."""
    place = draw.random(prompts)
    policy = (place < only_policy) | (place > 0.3)
    reference = ((place >= only_policy) & (place < only_policy + only_reference)) | (place > 0.3)
    spent = nfe + draw.integers(-2, 3, prompts)
    return table({POLICY: policy, "fixed:50": reference}, {POLICY: spent, "fixed:50": np.full(prompts, 50.0)})


def against_frontier(draw, prompts, gain, retry=None):
    """H2: fixed:4 correct on .6, fixed:8 on .8; the policy takes 4 or 8 NFE at random and is correct on .7 + ``gain``.

    Args:
        draw: generator.
        prompts: how many.
        gain: of the policy over the mixture at its own 6 NFE.
        retry: share correct of the other kinds of comparator, at 6 NFE; without it there are none.
    """
    place = draw.random(prompts)  # a prompt's difficulty, shared by all samplers
    fixed = {4: place < 0.6, 8: place < 0.8}
    dear = draw.random(prompts) < 0.5
    own = np.where(draw.random(prompts) < 0.5, place, draw.random(prompts))  # it shares half of what is difficult
    correct = {
        POLICY: own < 0.7 + gain,
        "fixed:4": fixed[4],
        "fixed:8": fixed[8],
    }
    nfe = {POLICY: np.where(dear, 8.0, 4.0), "fixed:4": np.full(prompts, 4.0), "fixed:8": np.full(prompts, 8.0)}
    if retry is not None:
        for name, share in {"prompt_rule:8,4": 0.7, "best_of:2x3": 0.7, "threshold_resample:0.5": retry}.items():
            correct[name] = draw.random(prompts) < share
            nfe[name] = np.where(draw.random(prompts) < 0.5, 8.0, 4.0)
    return table(correct, nfe)


def at_a_corner(draw, prompts, gain):
    """H2 where the frontier bends: fixed:4, 6 and 8 correct on .5, .75 and .85; the policy costs 6 NFE in the mean."""
    place = draw.random(prompts)
    correct = {f"fixed:{steps}": place < share for steps, share in ((4, 0.5), (6, 0.75), (8, 0.85))}
    nfe = {f"fixed:{steps}": np.full(prompts, float(steps)) for steps in (4, 6, 8)}
    own = np.where(draw.random(prompts) < 0.5, place, draw.random(prompts))
    spent = np.where(draw.random(prompts) < 0.5, 8.0, 4.0)
    return table({POLICY: own < 0.75 + gain, **correct}, {POLICY: spent, **nfe})


def before_the_last(draw, prompts, gain):
    """H2 just before the frontier's end: fixed:7 and 8 correct on .5 and .9, the policy ``gain`` above their mixture.

    Its own 7.7 NFE scatter so much that a few hundred prompts cannot tell them from 8.
    """
    place = draw.random(prompts)
    correct = {"fixed:7": place < 0.5, "fixed:8": place < 0.9, POLICY: draw.random(prompts) < 0.78 + gain}
    spent = np.where(draw.random(prompts) < 0.5, 9.7, 5.7)
    return table(correct, {POLICY: spent, "fixed:7": np.full(prompts, 7.0), "fixed:8": np.full(prompts, 8.0)})


def seldom(draw, prompts, gain):
    """H2 where the policy takes what fixed:8 takes and draws the same image, but on a share ``gain`` of the prompts."""
    right = draw.random(prompts) < 0.8
    better = draw.random(prompts) < gain / 0.2  # of the wrong ones
    eight = np.full(prompts, 8.0)
    return table({POLICY: right | better, "fixed:8": right}, {POLICY: eight, "fixed:8": eight})


CURVE = tuple(f"policy:emoji@0.0{step}" for step in range(2, 7))


def along_a_curve(draw, prompts, gain):
    """H2 at six costs of a policy, each ``gain`` above fixed:4 and fixed:8, correct on .5 and .9."""
    place = draw.random(prompts)

    def verdict(share):
        return np.where(draw.random(prompts) < 0.5, place, draw.random(prompts)) < share

    correct, nfe = {}, {}
    for name, spent in zip((POLICY, *CURVE), np.linspace(4.5, 7.5, 1 + len(CURVE)), strict=True):
        correct[name], nfe[name] = verdict(0.1 + 0.1 * spent + gain), np.full(prompts, spent)
    fixed = {"fixed:4": (place < 0.5, np.full(prompts, 4.0)), "fixed:8": (place < 0.9, np.full(prompts, 8.0))}
    for name, (right, spent) in fixed.items():
        correct[name], nfe[name] = right, spent
    return table(correct, nfe)


def among_many(draw, prompts, gain):
    """H2 at 6 NFE against 24 numbers of steps from 4 to 8 that are correct on .6 to .9, a straight line."""
    place = draw.random(prompts)

    def verdict(share):
        return np.where(draw.random(prompts) < 0.8, place, draw.random(prompts)) < share

    names = [f"fixed:{step}" for step in range(24)]
    costs = np.linspace(4, 8, 24)
    correct = {name: verdict(0.6 + 0.075 * (cost - 4)) for name, cost in zip(names, costs, strict=True)}
    nfe = {name: np.full(prompts, cost) for name, cost in zip(names, costs, strict=True)}
    return table({POLICY: verdict(0.75 + gain), **correct}, {POLICY: np.full(prompts, 6.0), **nfe})


def records(images):
    """A table's records by sampler, one image per prompt."""
    return {
        sampler: [
            synthetic(sampler, number, nfe, correct)
            for number, (nfe, correct) in enumerate(
                zip(images.columns["nfe"][row], images.columns["correct"][row] > 0.5, strict=True)
            )
        ]
        for row, sampler in enumerate(images.samplers)
    }


@cache
def synthetic(sampler, number, nfe, correct):
    """One record, made once: simulations draw the same ones again and again."""
    return record(sampler, number, nfe=float(nfe), correct=bool(correct))


def with_refinement(draw, prompts, gain):
    """H4: no refinement spends 5 NFE and is correct on .7; refinement spends 7, where 8 fixed steps reach .8."""
    place = draw.random(prompts)
    line = 0.7 + 0.1 * 2 / 3 + gain
    return table(
        {PLAIN: place < 0.7, "fixed:8": draw.random(prompts) < 0.8, POLICY: draw.random(prompts) < line},
        {
            PLAIN: draw.integers(4, 7, prompts),
            "fixed:8": np.full(prompts, 8.0),
            POLICY: draw.integers(6, 9, prompts),
        },
    )


def by_constraints(draw, prompts, own, control):
    """H3: NFE that follow constraints with about these rank correlations, rounded to whole evaluations."""
    constraints = draw.integers(1, 5, prompts).astype(float)
    standard = (constraints - 2.5) / np.sqrt(1.25)

    def spent(correlation):
        noise = draw.normal(size=prompts)
        return np.round(10 + 4 * (correlation * standard + np.sqrt(1 - correlation**2) * noise))

    return table({}, {POLICY: spent(own), CONTROL: spent(control)}, constraints)


def prompts_for_correlation(correlation, alpha=0.05, power=0.8):
    """Prompts with which a rank correlation is found: Fisher's z with Bonett and Wright's (2000) variance."""
    both = norm.ppf(1 - alpha / 2) + norm.ppf(power)
    return int(np.ceil((both / np.arctanh(abs(correlation))) ** 2 * (1 + correlation**2 / 2) + 3))

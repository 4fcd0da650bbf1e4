"""What every reward term promises."""

from __future__ import annotations

import inspect
from dataclasses import fields

import numpy as np

from addiffusion_env.checks.base import require
from addiffusion_env.rewards.base import RewardTerm, Transition

LANES = 4


def settings_have_defaults(term: RewardTerm) -> None:
    """It takes a transition, then settings that all have a default; its docstring says what it pays for."""
    names = list(inspect.signature(term).parameters.values())
    require(len(names) >= 1, "it takes no arguments", "take (transition, **settings)")
    bare = [item.name for item in names[1:] if item.default is item.empty]
    require(not bare, f"settings without a default: {', '.join(bare)}", "give them one")
    require(bool((term.__doc__ or "").strip()), "there is no docstring", "say what it pays for, and in which unit")


def one_finite_number_a_lane(term: RewardTerm) -> None:
    """B lanes give B finite numbers, also at the first step, which has no picture before it."""
    for first in (False, True):
        found = np.asarray(term(_transition(first)))
        require(found.shape == (LANES,), f"{LANES} lanes gave the shape {found.shape}", "one number a lane")
        when = "at the first step" if first else "in the middle"
        require(bool(np.isfinite(found).all()), f"{when} it gives {found}", "give 0 where there is nothing before")


def lanes_are_independent(term: RewardTerm) -> None:
    """A lane's number does not depend on the other lanes."""
    whole = np.asarray(term(_transition(False)))
    for lane in range(LANES):
        one = Transition(*(getattr(_transition(False), item.name)[lane : lane + 1] for item in fields(Transition)))
        alone = float(np.asarray(term(one))[0])
        require(
            abs(alone - whole[lane]) < 1e-9, f"lane {lane} gives {alone} alone, {whole[lane]} beside others", "split"
        )


def the_transition_is_left_alone(term: RewardTerm) -> None:
    """The transition's arrays are not changed."""
    given, before = _transition(False), _transition(False)
    term(given)
    for item in fields(Transition):
        same = np.array_equal(getattr(given, item.name), getattr(before, item.name), equal_nan=True)
        require(same, f"transition.{item.name} was changed", "work on a copy")


REWARD_CONTRACTS = (
    settings_have_defaults,
    one_finite_number_a_lane,
    lanes_are_independent,
    the_transition_is_left_alone,
)
"""Subject: a function of the form :class:`RewardTerm`."""


def _transition(first: bool) -> Transition:
    """Four lanes: two go on, two end. At the first step there is nothing before."""
    rng = np.random.default_rng(0)
    before = np.full((2, LANES), np.nan) if first else rng.normal(size=(2, LANES))
    after = rng.normal(size=(2, LANES))
    texts = rng.normal(size=(LANES, 8))
    return Transition(
        clip_before=before[0] / 10,
        clip_after=after[0] / 10,
        preference_before=before[1],
        preference_after=after[1],
        dino_similarity=np.zeros(LANES) if first else rng.uniform(0, 1, LANES),
        nfe=np.array([1.0, 2.5, 4.0, 0.5]),
        price=np.full(LANES, 0.01),
        action=np.array([0, 2, 1, 0]),
        terminal=np.array([False, False, True, True]),
        reference=np.full(LANES, np.nan),
        clip_text=texts / np.linalg.norm(texts, axis=1, keepdims=True),
    )

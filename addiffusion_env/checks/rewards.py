"""Contracts of reward terms."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace

import numpy as np

from addiffusion_env.checks.base import require
from addiffusion_env.rewards import RewardTerm, Transition

LANES = 4
SCORES = {
    "preference": ("preference_before", "preference_after"),
    "clip": ("clip_before", "clip_after"),
    "dino": ("dino_similarity",),
}
"""Part of the preview scores -> its arrays in a transition."""


def settings_have_defaults(kind: type[RewardTerm]) -> None:
    """It can be created without arguments; its docstring says what it rewards."""
    require(issubclass(kind, RewardTerm), f"{kind.__name__} is no RewardTerm", "derive it from RewardTerm")
    bare = [item.name for item in inspect.signature(kind).parameters.values() if item.default is item.empty]
    require(not bare, f"settings without a default: {', '.join(bare)}", "add defaults")
    require(bool((kind.__doc__ or "").strip()), "there is no docstring", "say what it rewards, and in which unit")


def it_declares_which_scores_it_reads(kind: type[RewardTerm]) -> None:
    """Every score that it depends on is declared in ``pays_by``; without ``needs_preview`` it ignores previews."""
    term, plain = kind(), _transition(False)
    for part, names in SCORES.items():
        other = replace(plain, **{name: getattr(plain, name) + 1.0 for name in names})
        moved = not np.array_equal(term(plain), term(other))
        require(part in term.pays_by or not moved, f"it depends on {part}", f"add {part!r} to pays_by")
    if not term.needs_preview:
        before = {name: np.full(LANES, np.nan) for names in SCORES.values() for name in names}
        unseen = replace(plain, terminal=np.zeros(LANES, bool))
        found = term(replace(unseen, **before))
        require(np.array_equal(term(unseen), found), "it depends on previews", "declare needs_preview = True")


def one_finite_number_a_lane(kind: type[RewardTerm]) -> None:
    """B lanes give B finite numbers, also at the first step, which has no image before it."""
    term = kind()
    for first in (False, True):
        found = np.asarray(term(_transition(first)))
        require(found.shape == (LANES,), f"{LANES} lanes gave the shape {found.shape}", "return one number per lane")
        when = "at the first step" if first else "at a later step"
        require(bool(np.isfinite(found).all()), f"{when} it gives {found}", "return 0 where there is no previous image")


def lanes_are_independent(kind: type[RewardTerm]) -> None:
    """A lane's reward does not depend on the other lanes."""
    term = kind()
    lanes = _transition(False)
    whole = np.asarray(term(lanes))
    for lane in range(LANES):
        one = Transition(**{item.name: getattr(lanes, item.name)[[lane]] for item in fields(lanes)})
        alone, batched = float(np.asarray(term(one))[0]), float(whole[lane])
        same = abs(alone - batched) < 1e-9
        require(same, f"lane {lane} gives {alone} alone, {batched} in a batch", "compute each lane independently")


def the_transition_is_left_alone(kind: type[RewardTerm]) -> None:
    """The transition's arrays are not changed."""
    given, before = _transition(False), _transition(False)
    kind()(given)
    for item in fields(Transition):
        same = np.array_equal(getattr(given, item.name), getattr(before, item.name), equal_nan=True)
        require(same, f"transition.{item.name} was changed", "work on a copy")


REWARD_CONTRACTS = (
    settings_have_defaults,
    it_declares_which_scores_it_reads,
    one_finite_number_a_lane,
    lanes_are_independent,
    the_transition_is_left_alone,
)
"""Subject: a subclass of :class:`RewardTerm`."""


def _transition(first: bool) -> Transition:
    """Four lanes: two continue, two end. At the first step there is no previous image."""
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
        cost_per_nfe=np.full(LANES, 0.01),
        action=np.array([0, 2, 1, 0]),
        terminal=np.array([False, False, True, True]),
        clip_text=texts / np.linalg.norm(texts, axis=1, keepdims=True),
    )

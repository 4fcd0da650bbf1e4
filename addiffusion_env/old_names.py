"""Names of earlier versions and what they are called now. They are understood for one release, with a note."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

OLD_NAMES: dict[str, dict[str, str]] = {
    "environment setting": {"price": "cost_per_nfe", "landing_steps": "early_exit_steps"},
    "refine setting": {"liking": "utility"},
    "refine preset": {"retry": "resample_short", "restart": "resample", "again": "resample_keep_best"},
    "utility setting": {"belief": "calibrator"},
    "observation key": {"price": "cost_per_nfe", "tries": "attempts", "belief": "correctness"},
    "reward term": {"nfe_price": "nfe_cost"},
    "render mode": {"film": "filmstrip"},
    "reset option": {"price": "cost_per_nfe"},
    "sampler": {"threshold_retry": "threshold_resample"},
    "evaluation setting": {
        "methods": "samplers",
        "prices": "costs_per_nfe",
        "price": "cost_per_nfe",
        "keep_pictures": "keep_images",
        "films": "filmstrips",
    },
    "column": {"method": "sampler", "demands": "constraints", "picture": "image"},
    "manifest entry": {"methods": "samplers", "price": "cost_per_nfe"},
    "policy file entry": {"highest_price": "highest_cost_per_nfe", "default_price": "default_cost_per_nfe"},
}
"""Kind of name -> old name -> the present one."""

Given = TypeVar("Given")


def present(kind: str, given: Given, note: bool = True) -> Given:
    """A name, or the keys of a mapping, under their present names; anything else is given back as it is.

    Args:
        kind: a key of :data:`OLD_NAMES`.
        given: what a user wrote, or an earlier version kept.
        note: whether to say so on the standard error, once a process for each name.

    >>> present("refine preset", "again", note=False), present("refine preset", "off")
    ('resample_keep_best', 'off')
    >>> present("environment setting", {"price": 0.01, "steps": 6}, note=False)
    {'cost_per_nfe': 0.01, 'steps': 6}
    """
    known = OLD_NAMES[kind]
    value: Any = given
    if isinstance(value, str) and value in known:
        value = _renamed(kind, value, note)
    elif isinstance(value, Mapping) and not known.keys().isdisjoint(value):
        value = {_renamed(kind, key, note) if key in known else key: item for key, item in value.items()}
    return value  # type: ignore[no-any-return]


def present_settings(given: Mapping[str, Any], note: bool = True) -> dict[str, Any]:
    """An environment's settings under their present names, those inside refinement, reward and observation too.

    >>> present_settings({"refine": {"preset": "again", "liking": {"belief": "emoji"}}, "steps": 6}, note=False)
    {'refine': {'preset': 'resample_keep_best', 'utility': {'calibrator': 'emoji'}}, 'steps': 6}
    """
    found = dict(present("environment setting", given, note))
    inside = {
        "refine": present_refine,
        "reward": present_reward,
        "observation_keys": present_keys,
        "render_mode": lambda mode, note: present("render mode", mode, note),
    }
    return {key: inside[key](value, note) if key in inside else value for key, value in found.items()}


def present_refine(given: Any, note: bool = True) -> Any:
    """A refinement, as a preset's name or a mapping, under present names."""
    if not isinstance(given, Mapping):
        return present("refine preset", given, note)
    found = dict(present("refine setting", given, note))
    inside = {"preset": "refine preset", "utility": "utility setting"}
    return {key: present(inside[key], value, note) if key in inside else value for key, value in found.items()}


def present_reward(given: Any, note: bool = True) -> Any:
    """A reward, as a preset's name or a mapping of terms, under present names."""
    if not isinstance(given, Mapping):
        return given
    terms = present("reward term", given, note)
    return {name: present("utility setting", term, note) for name, term in terms.items()}


def present_keys(given: Any, note: bool = True) -> Any:
    """A list of observation keys under present names; a preset's name is given back as it is."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        return given
    return [present("observation key", key, note) for key in given]


def _renamed(kind: str, old: str, note: bool) -> str:
    if note:
        note_renamed(f"{kind} {old!r}", repr(OLD_NAMES[kind][old]))
    return OLD_NAMES[kind][old]


@cache
def note_renamed(what: str, new: str) -> None:
    """Prints, once per process, that something is understood under its former name."""
    print(f"note: {what} is called {new} now; a later version will refuse the old name", file=sys.stderr)

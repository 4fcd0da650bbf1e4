"""Records as numbers per prompt: the prompt is the unit of every statistic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from addiffusion_env.errors import unknown
from addiffusion_env.evaluation.records import Record
from addiffusion_env.samplers.traits import Traits

MEASURES = ("nfe", "network_calls", "decisions", "refinements", "preference", "clip_score", "correct", "seconds")
"""The numeric fields of every record; further scorers are measures under their own names."""


def measure(record: Record, name: str) -> float:
    """One number of a record; NaN where it is unknown (no verdict).

    Raises:
        UnknownNameError: for a name that is neither a measure nor a scorer of this record.
    """
    if name in MEASURES:
        value = getattr(record, name)
        return float("nan") if value is None else float(value)
    if name not in record.extra:
        raise unknown("measure", name, (*MEASURES, *record.extra))
    return float(record.extra[name])


def per_prompt(records: Iterable[Record], name: str) -> dict[str, float]:
    """A mapping prompt id -> mean over its seeds; prompts where the measure is unknown are left out."""
    values: dict[str, list[float]] = {}
    for record in records:
        value = measure(record, name)
        if not np.isnan(value):
            values.setdefault(record.prompt_id, []).append(value)
    return {prompt_id: float(np.mean(numbers)) for prompt_id, numbers in values.items()}


def column(records: Iterable[Record], name: str) -> np.ndarray:
    """(P,) the same values, in order of prompt id."""
    means = per_prompt(records, name)
    return np.array([means[key] for key in sorted(means)])


def paired(first: Sequence[Record], second: Sequence[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(P,) and (P,): a measure of two samplers by prompt, over the (prompt, seed) pairs for which both have it."""
    one, two = (column(group, name) for group in common([first, second], (name,)))
    return one, two


def focus_of(traits: Mapping[str, Traits]) -> str:
    """The sampler that a report is about.

    Args:
        traits: of all samplers by name, in order; at least one.

    Returns:
        The first that was trained, else the first that needs previews, else the first that is not constant, else the
        first. An oracle is only a bound: it is chosen when there is no other sampler.

    >>> focus_of({"fixed:4": Traits(constant=True), "random:0.1": Traits(), "mine": Traits(learned=True)})
    'mine'
    """
    usable = {name: own for name, own in traits.items() if not own.bound} or traits
    ranked = sorted(usable, key=lambda name: _rank(usable[name]))  # stable: the first of ties
    return ranked[0]


def _rank(traits: Traits) -> int:
    return 0 if traits.learned else 1 if traits.needs_preview else 3 if traits.constant else 2


def common(groups: Sequence[Sequence[Record]], names: Sequence[str] = ()) -> list[list[Record]]:
    """Each group's records of the (prompt, seed) pairs that all groups have, in one order.

    Args:
        groups: records of each sampler.
        names: measures; an image for which one is unknown is not there.
    """

    def known(record: Record) -> bool:
        return not any(np.isnan(measure(record, name)) for name in names)

    keyed = [{(record.prompt_id, record.seed): record for record in group if known(record)} for group in groups]
    shared = sorted(set.intersection(*(set(group) for group in keyed))) if keyed else []
    return [[group[key] for key in shared] for group in keyed]

"""Collapse detection: whether a policy behaves the same for every prompt, and its regret."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from addiffusion_env.engine.process import Action
from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.records import Record
from addiffusion_env.evaluation.statistics import scipy_stats
from addiffusion_env.evaluation.tables import common
from addiffusion_env.tabular.outcomes import Regret, regret_of

CONSTANT_SHARE, LEAST_ENTROPY = 0.95, 0.3
"""Behaviour counts as collapsed from this share of images that are treated identically, or up to this many bits."""


@dataclass(frozen=True)
class Behaviour:
    """Variation of a sampler's actions over prompts.

    Attributes:
        images: number of images.
        action_shares: shares of continue, stop and refine among all actions; sum to 1.
        step_entropy: entropy over images of the action at each decision, in bits, averaged over decisions weighted by
            the number of images still in progress. 0 when every image is treated identically.
        behaviours: number of distinct (actions, NFE) pairs.
        behaviour_entropy: entropy of these over images, in bits.
        constant_share: share of the most frequent one.
        nfe_spread: standard deviation of NFE over images.
        collapsed: see :data:`CONSTANT_SHARE`.
        reason: explanation as text.
    """

    images: int
    action_shares: tuple[float, float, float]
    step_entropy: float
    behaviours: int
    behaviour_entropy: float
    constant_share: float
    nfe_spread: float
    collapsed: bool
    reason: str


def behaviour(records: Sequence[Record]) -> Behaviour:
    """Measures how much a sampler's behaviour depends on the image.

    Raises:
        ConfigError: without records.
    """
    if not records:
        raise ConfigError("behaviour of a sampler without records", "evaluate it first")
    kinds = Counter((record.actions, record.nfe) for record in records)
    commonest, times = kinds.most_common(1)[0]
    share = times / len(records)
    step = step_entropy([record.actions for record in records])
    taken = Counter(action for record in records for action in record.actions)
    total = max(1, taken.total())
    spread = entropy(kinds.values())
    collapsed, reason = _verdict(share, spread, commonest)
    return Behaviour(
        images=len(records),
        action_shares=(taken[0] / total, taken[1] / total, taken[2] / total),
        step_entropy=step,
        behaviours=len(kinds),
        behaviour_entropy=spread,
        constant_share=share,
        nfe_spread=float(np.std([record.nfe for record in records])),
        collapsed=collapsed,
        reason=reason,
    )


def _verdict(share: float, spread: float, commonest: tuple[tuple[int, ...], float]) -> tuple[bool, str]:
    words = f"{share:.0%} of images are treated alike ({describe(commonest[0])}, {commonest[1]:g} NFE)"
    if share >= CONSTANT_SHARE:
        return True, f"{words}; from {CONSTANT_SHARE:.0%} on that is a constant"
    if spread <= LEAST_ENTROPY:
        return True, f"{words}, and behaviour varies by {spread:.3f} bits, at most {LEAST_ENTROPY:g}"
    return False, f"{words}; behaviour varies by {spread:.2f} bits over images"


def describe(actions: Sequence[int]) -> str:
    """Actions as text, run-length encoded.

    >>> describe([0, 0, 2, 1])
    'continue x2, refine, stop'
    """
    return ", ".join(name + (f" x{n}" if n > 1 else "") for name, n in runs_of(actions)) or "nothing"


def runs_of(actions: Sequence[int]) -> list[tuple[str, int]]:
    """Actions as (name, number of repetitions)."""
    return [(Action(action).name.lower(), len(list(same))) for action, same in groupby(actions)]


def step_entropy(sequences: Sequence[Sequence[int]]) -> float:
    """Bits per decision: entropy over images of the action, weighted by the images that reach it."""
    longest = max((len(actions) for actions in sequences), default=0)
    bits, weight = 0.0, 0
    for decision in range(longest):
        counts = Counter(actions[decision] for actions in sequences if len(actions) > decision)
        bits += entropy(counts.values()) * counts.total()
        weight += counts.total()
    return bits / weight if weight else 0.0


def entropy(counts: Iterable[int]) -> float:
    """Shannon entropy of counts, in bits.

    >>> entropy([2, 2]), entropy([5])
    (1.0, 0.0)
    """
    return float(scipy_stats().entropy(list(counts), base=2))


def regret_in(
    policy: Sequence[Record], constants: Mapping[str, Sequence[Record]], cost_per_nfe: float
) -> Regret | None:
    """Regret in preference minus cost per NFE times NFE; ``None`` when policy and constants share no images.

    The oracle knows the preference of every constant's image before it chooses, so it is optimistic.
    """
    groups = common([policy, *constants.values()])
    if not constants or not groups[0]:
        return None
    utility = np.array([[record.preference - cost_per_nfe * record.nfe for record in group] for group in groups])
    nfe = np.array([[record.nfe for record in group] for group in groups[1:]])
    picked = utility[1:].argmax(0)
    oracle = utility[1:].max(0), nfe[picked, np.arange(len(picked))]
    return regret_of(utility[0], dict(zip(constants, utility[1:], strict=True)), oracle, cost_per_nfe)

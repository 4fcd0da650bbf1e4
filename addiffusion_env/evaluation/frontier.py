"""Quality of a sampler above a frontier of others at the same mean cost: the estimator used by reports and claims.

Two samplers, mixed at random over prompts, form a sampler at any cost between theirs. So a sampler is compared with the
upper hull of (mean cost, mean quality): the strongest mixture. The hull is chosen on the same prompts that it is
evaluated on, which favours the other samplers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from addiffusion_env.evaluation.records import Record
from addiffusion_env.evaluation.statistics import (
    Interval,
    bootstrap_p,
    range_of,
    resampled,
    scipy_stats,
    score_interval,
)
from addiffusion_env.evaluation.tables import column, common

_CHUNK = 500  # resamples at once: bounds memory at chunk x prompts
_NEAR = 3.0  # standard errors of the difference within which two costs may be equal


@dataclass(frozen=True)
class FrontierGain:
    """Comparison of a sampler with a frontier at its own mean cost.

    Attributes:
        gain: mean quality above the frontier, with an interval over prompts that also covers the sampling error of both
            costs, and both sides of a kink that the cost may be at: the wider of the bootstrap's and the score's.
        cost: the sampler's mean cost.
        frontier: the frontier's quality at that cost.
        between: the two samplers of the mixture (twice the same one beyond an end).
        reached: whether the frontier reaches this cost; beyond its most expensive sampler that one is used.
        below: whether this cost is below that of its cheapest sampler, which is then used at its own, higher cost: a
            gain over it is one, but a deficit is none at equal cost.
        p: two-sided bootstrap p of the null hypothesis that the gain is 0, on whichever side of a kink.
        most: the largest gain that is not ruled out, at the level of the intervals for all gains of a family together,
            and whichever mixture is the strongest.
        spread: standard deviation of the gain over prompts.
    """

    gain: Interval
    cost: float
    frontier: float
    between: tuple[str, str]
    reached: bool
    below: bool
    p: float
    most: float
    spread: float


@dataclass(frozen=True, eq=False)
class Pairing:
    """A sampler and the members of a frontier on P prompts.

    Attributes:
        quality: (P,) quality of the sampler.
        cost: (P,) cost of the sampler.
        names: names of the M members.
        qualities: (M, P).
        costs: (M, P).
    """

    quality: np.ndarray
    cost: np.ndarray
    names: Sequence[str]
    qualities: np.ndarray
    costs: np.ndarray


def upper_hull(cost: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Indices of the points on the upper hull from the cheapest to the best, by increasing cost.

    >>> upper_hull(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 0.2, 0.9, 0.8])).tolist()
    [0, 2]
    """
    hull: list[int] = []
    for index in np.lexsort((-quality, cost)):
        if hull and (quality[index] <= quality[hull[-1]] or cost[index] == cost[hull[-1]]):
            continue
        while len(hull) > 1 and _turns_up(hull[-2], hull[-1], index, cost, quality):
            hull.pop()
        hull.append(int(index))
    return np.array(hull)


def _turns_up(a: int, b: int, c: int, x: np.ndarray, y: np.ndarray) -> bool:
    return bool((y[b] - y[a]) * (x[c] - x[a]) <= (y[c] - y[a]) * (x[b] - x[a]))


def mixture(costs: np.ndarray, at: float) -> np.ndarray:
    """(K,) weights of the two samplers whose mean costs bracket ``at``, so that the mixture costs ``at``.

    Beyond an end of the costs, only that end has a weight.

    >>> mixture(np.array([8.0, 4.0, 20.0]), 7.0).tolist()
    [0.75, 0.25, 0.0]
    """
    order = np.argsort(costs, kind="stable")
    place = float(np.interp(at, costs[order], np.arange(len(costs))))
    left, right = int(np.floor(place)), int(np.ceil(place))
    weights = np.zeros(len(costs))
    weights[order[left]] += 1 - (place - left)
    weights[order[right]] += place - left
    return weights


def gains(
    pairings: Sequence[Pairing], rng: np.random.Generator, level: float = 0.95, resamples: int = 5000
) -> list[FrontierGain]:
    """Gain of each sampler over its frontier at its own mean cost; all share the same resamples of prompts.

    On few differences between verdicts a bootstrap has seen too little: where the policy differs from its comparator on
    no prompt, its interval is [0, 0], and a gain of .01 that is there was ruled out by half of the samples of 64
    prompts, by 15 % of those of 192. The score's interval (:func:`.score_interval`) keeps its level there.

    Args:
        pairings: samplers and frontiers on the same P prompts, a family.
        rng: draws the resamples.
        level: of the intervals.
        resamples: how many.
    """
    lines = [_lines(pairing) for pairing in pairings]
    every = np.concatenate([*lines, *(_rivals(pairing, own[0]) for pairing, own in zip(pairings, lines, strict=True))])
    chunks = [min(_CHUNK, resamples - first) for first in range(0, resamples, _CHUNK)]
    draws = np.concatenate([every @ resampled(every.shape[1], rng, count).T for count in chunks], axis=1)
    together = _level_together(every, draws, level)  # the frontier was chosen among its rivals by the same prompts
    found, first = [], 0
    for pairing, own in zip(pairings, lines, strict=True):
        drawn = draws[first : first + len(own)]
        first += len(own)
        unit = range_of(pairing.quality, pairing.qualities)
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=1)
        alone = [score_interval(line, level, unit) for line in own]
        low, high = min(low.min(), *(one.low for one in alone)), max(high.max(), *(one.high for one in alone))
        gain = Interval(float(own[0].mean()), float(low), float(high), level, every.shape[1])
        mean_c, at = pairing.costs.mean(1), float(pairing.cost.mean())
        hull = upper_hull(mean_c, pairing.qualities.mean(1))
        around = [pairing.names[hull[k]] for k in np.flatnonzero(mixture(mean_c[hull], at))]
        found.append(
            FrontierGain(
                gain=gain,
                cost=at,
                frontier=float(pairing.quality.mean() - gain.estimate),
                between=(around[0], around[-1]),
                reached=at <= 1.01 * float(mean_c.max()),  # 1 % above the most expensive one is accepted
                below=1.01 * at < float(mean_c.min()),
                p=bootstrap_p(drawn),
                most=max(gain.high, *(score_interval(line, together, unit).high for line in own)),
                spread=float(own.std(1).max()),
            )
        )
    return found


def _level_together(lines: np.ndarray, draws: np.ndarray, level: float) -> float:
    """Level of each of several intervals at which all of their upper bounds hold together with ``(1 + level) / 2``.

    From the joint bootstrap distribution of the (L, P) lines' means, studentized: lines that are alike cost little.

    Args:
        lines: (L, P).
        draws: (L, resamples) their bootstrap means.
        level: of one.
    """
    errors = lines.std(1) / np.sqrt(lines.shape[1])
    varies = errors > 1e-12
    if not varies.any():
        return level
    beyond = ((lines.mean(1)[:, None] - draws)[varies] / errors[varies, None]).max(0)
    return max(level, 2 * float(scipy_stats().norm.cdf(np.quantile(beyond, (1 + level) / 2))) - 1)


def _rivals(pairing: Pairing, line: np.ndarray) -> np.ndarray:
    """(L, P) the same as ``line`` over mixtures of any two samplers that could have been the frontier by chance."""
    mean_c, at = pairing.costs.mean(1), float(pairing.cost.mean())
    found = []
    for left, right in product(np.flatnonzero(mean_c < at), np.flatnonzero(mean_c >= at)):
        gap = pairing.costs[right] - pairing.costs[left], pairing.qualities[right] - pairing.qualities[left]
        slope, share = gap[1].mean() / gap[0].mean(), (at - mean_c[left]) / gap[0].mean()
        surplus = pairing.cost - pairing.costs[left] - share * gap[0]
        found.append(pairing.quality - pairing.qualities[left] - share * gap[1] - slope * surplus)
    rivals = np.array(found).reshape(-1, len(line))
    behind = rivals - line
    return rivals[behind.mean(1) <= _NEAR * behind.std(1) / np.sqrt(len(line))]


def _lines(pairing: Pairing) -> np.ndarray:
    """(L, P) each prompt's contribution to the gain over each frontier line that may apply at the sampler's cost.

    The first line is the one at the sampler's own mean cost, which the estimate is about.
    Between two samplers of the hull the line's slope converts a prompt's surplus of cost into quality. The frontier
    has a kink at each of its samplers. If the sampler's cost equals that of one of them within sampling error, the data
    cannot tell the side of the kink, and using the side seen in the sample is biased in favour of the sampler (7.7 %
    false positives instead of 2.5). Then both lines are tried: a gain is shown, or ruled out, only if it is over each.
    """
    mean_c, mean_q = pairing.costs.mean(1), pairing.qualities.mean(1)
    hull = upper_hull(mean_c, mean_q)
    corner_c, corner_q = mean_c[hull], mean_q[hull]
    # Beyond both ends, more cost adds no quality.
    slopes = np.concatenate([[0.0], np.diff(corner_q) / np.diff(corner_c), [0.0]])
    at = float(pairing.cost.mean())
    place = int(np.searchsorted(corner_c, at))  # line k ends at corner k and starts at corner k - 1
    weights = mixture(corner_c, at)
    surplus = pairing.cost - weights @ pairing.costs[hull]
    lines = [pairing.quality - weights @ pairing.qualities[hull] - slopes[place] * surplus]
    for corner, index in enumerate(hull):
        surplus = pairing.cost - pairing.costs[index]
        if abs(surplus.mean()) <= _NEAR * surplus.std() / np.sqrt(len(surplus)):
            lines += [pairing.quality - pairing.qualities[index] - slope * surplus for slope in slopes[corner:][:2]]
    return np.array(lines)


def gain_over(
    sampler: Sequence[Record],
    constants: Mapping[str, Sequence[Record]],
    quality: str,
    rng: np.random.Generator,
    cost: str = "nfe",
    resamples: int = 5000,
) -> FrontierGain | None:
    """A sampler's gain in quality over the frontier of constant samplers at equal mean cost.

    Args:
        sampler: its records.
        constants: name -> records of the constant samplers.
        quality: the measure to compare (``"correct"``).
        rng: draws the resamples.
        cost: the measure to equalise (``"nfe"`` or ``"seconds"``).
        resamples: of prompts.

    Returns:
        ``None`` when there are no constant samplers or no common prompts with a known quality.
    """
    names = list(constants)
    groups = common([sampler, *(constants[name] for name in names)], (quality, cost))
    if not names or not groups[0]:
        return None
    qualities, costs = (np.array([column(group, name) for group in groups]) for name in (quality, cost))
    return gains([Pairing(qualities[0], costs[0], names, qualities[1:], costs[1:])], rng, resamples=resamples)[0]

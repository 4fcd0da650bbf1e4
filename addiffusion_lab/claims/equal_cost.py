"""The policy against groups of comparators at equal mean cost: what H2 and H4 share.

A group's frontier is the upper hull of its methods in (mean cost, mean quality): the strongest mixture that it can
make at any cost. The hull is chosen on the very prompts it is judged on, which favours the comparators. Along the
policy's own curve neighbouring prices are mixed, none is chosen by the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from addiffusion_env.baselines import named_traits
from addiffusion_env.evaluation.frontier import upper_hull
from addiffusion_env.evaluation.statistics import (
    Interval,
    bootstrap_p,
    holm,
    prompts_for_difference,
    resampled,
    spread_of,
)
from addiffusion_lab.claims.base import Case, Comparison, Outcome, Verdict, unanswered
from addiffusion_lab.claims.pictures import Means

_CHUNK = 500  # resamples at once: bounds memory at chunk x prompts
_NEAR = 3.0  # standard errors of the difference in cost within which two methods may cost the same


@dataclass(frozen=True)
class Weighed:
    """A family of comparisons, all of which must hold.

    Attributes:
        comparisons: in order.
        weakest: the one that decides.
        p: largest adjusted p.
        verdict: see :class:`~addiffusion_lab.claims.base.Verdict`.
        reason: in words.
        prompts_needed: to find a gain of one margin at the weakest; ``None`` where the claim is decided.
    """

    comparisons: tuple[Comparison, ...]
    weakest: Comparison
    p: float
    verdict: Outcome
    reason: str
    prompts_needed: int | None


def kind_of(method: str) -> str:
    """A method's kind of comparator: a constant stop counts as a fixed number of steps.

    >>> kind_of("stop:6"), kind_of("threshold_retry:-0.52")
    ('fixed', 'threshold_retry')
    """
    return named_traits(method).kind


def judge_groups(
    case: Case, name: str, claim: str, comparator: str, groups: Mapping[str, Sequence[str]], cost: str = "nfe"
) -> Verdict:
    """The verdict on a claim to be above every group, each mixed with fixed steps so that it reaches every cost.

    Args:
        case: its policy and curve must have records.
        name: the hypothesis.
        claim: in words.
        comparator: what an unanswered verdict names.
        groups: name -> methods with records.
        cost: the measure to equalise.
    """
    fixed = [method for method in case.table.methods if kind_of(method) == "fixed"]
    found = weigh(case, {group: tuple(dict.fromkeys((*members, *fixed))) for group, members in groups.items()}, cost)
    if isinstance(found, str):
        return unanswered(name, claim, case, comparator, found)
    return Verdict(
        hypothesis=name,
        claim=claim,
        verdict=found.verdict,
        effect=found.weakest.effect,
        p=found.p,
        n=found.weakest.effect.n,
        comparator=found.weakest.comparator,
        judge=case.judge,
        margin=case.margin,
        reason=found.reason,
        comparisons=found.comparisons,
        prompts_needed=found.prompts_needed,
    )


def weigh(case: Case, groups: Mapping[str, Sequence[str]], cost: str = "nfe") -> Weighed | str:
    """Judges whether the policy is above every group at every point of its curve.

    Args:
        case: its policy and curve must have records.
        groups: name -> methods with records.
        cost: the measure to equalise.

    Returns:
        The family, or why there is none, in words.
    """
    curve = case.claims.points
    rivals = list(dict.fromkeys(name for members in groups.values() for name in members))
    means = case.table.means([*curve, *rivals], [case.judge, cost])
    if (least := case.claims.least_prompts) > len(means):
        return f"{len(means)} prompts have both {case.judge} and {cost} for all methods, fewer than {least}"
    rows = {name: [len(curve) + rivals.index(member) for member in members] for name, members in groups.items()}
    points = _points(means.values[cost][: len(curve)].mean(1), case, cost)
    if not points:
        return "none of the NFE points lies between the ends of the policy's curve"
    raw = _compare(means, len(curve), rows, points, case, cost)
    adjusted = holm({str(n): row.p for n, row in enumerate(raw)}, case.claims.alpha)
    comparisons = tuple(
        Comparison(row.comparator, row.effect, row.p, adjusted[str(n)].adjusted, row.cost, row.reached)
        for n, row in enumerate(raw)
    )
    return _decided(comparisons, case, cost)


def _points(own: np.ndarray, case: Case, cost: str) -> list[np.ndarray]:
    """(K,) weights of the K prices of the curve for each point to compare at: one price, or two neighbours' mixture."""
    if cost != "nfe" or not case.claims.nfe_points:
        return list(np.eye(len(own)))
    inside = [at for at in case.claims.nfe_points if own.min() <= at <= own.max()]
    return [mixture(own, float(at)) for at in inside]


def mixture(costs: np.ndarray, at: float) -> np.ndarray:
    """(K,) weights of the two methods whose mean costs lie around ``at``, so that together they cost it.

    Beyond an end, that end alone.

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


def _compare(
    means: Means, curve: int, rows: Mapping[str, list[int]], points: Sequence[np.ndarray], case: Case, cost: str
) -> list[Comparison]:
    """One comparison a group and point, not adjusted yet; all of them see the same resamples."""
    quality, spent = means.values[case.judge], means.values[cost]
    level = 1 - case.claims.alpha
    found, shares = [], []
    for name, members in rows.items():
        for weights in points:
            own_q, own_c = weights @ quality[:curve], weights @ spent[:curve]
            at = float(own_c.mean())
            # A hair above the dearest comparator is no gap in the comparison.
            reached = at <= 1.01 * float(spent[members].mean(1).max())
            found.append((f"{name} at {at:.2f} {'NFE' if cost == 'nfe' else cost}", at, reached))
            shares.append(_shares(own_q, own_c, quality[members], spent[members]))
    draws = _draws(np.concatenate(shares), case)
    comparisons, first = [], 0
    for (label, at, reached), lines in zip(found, shares, strict=True):
        candidates = []
        for line, drawn in zip(lines, draws[first : first + len(lines)], strict=True):
            low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
            interval = Interval(float(line.mean()), float(low), float(high), level, len(means))
            candidates.append(Comparison(label, interval, bootstrap_p(drawn), 1.0, at, reached))
        comparisons.append(min(candidates, key=lambda row: row.effect.low))
        first += len(lines)
    return comparisons


def _draws(shares: np.ndarray, case: Case) -> np.ndarray:
    """(lines, resamples) bootstrap means of (lines, P) shares."""
    chunks = [min(_CHUNK, case.claims.resamples - first) for first in range(0, case.claims.resamples, _CHUNK)]
    return np.concatenate([shares @ resampled(shares.shape[1], case.rng, count).T for count in chunks], axis=1)


def _shares(own_q: np.ndarray, own_c: np.ndarray, quality: np.ndarray, spent: np.ndarray) -> np.ndarray:
    """(L, P) each prompt's share of the gain over each line of the frontier that may hold at the policy's cost.

    Between two methods of the hull the line's slope converts a prompt's surplus of cost into quality. The frontier
    bends at its methods. Where the policy costs what one of them does, give or take sampling error, the data cannot
    say which side of the bend it is on, and taking the side that the sample shows flatters the policy (7.7 % false
    alarms instead of 2.5). Then both lines are tried, and the comparison with the lower bound counts.
    """
    mean_c, mean_q = spent.mean(1), quality.mean(1)
    hull = upper_hull(mean_c, mean_q)
    corner_c, corner_q = mean_c[hull], mean_q[hull]
    # Beyond both ends, more cost buys nothing.
    slopes = np.concatenate([[0.0], np.diff(corner_q) / np.diff(corner_c), [0.0]])
    at = float(own_c.mean())
    place = int(np.searchsorted(corner_c, at))  # line k ends at corner k and starts at corner k - 1
    weights = mixture(corner_c, at)
    lines = [own_q - weights @ quality[hull] - slopes[place] * (own_c - weights @ spent[hull])]
    for corner, index in enumerate(hull):
        surplus = own_c - spent[index]
        if abs(surplus.mean()) <= _NEAR * surplus.std() / np.sqrt(len(surplus)):
            lines += [own_q - quality[index] - slope * surplus for slope in slopes[corner : corner + 2]]
    return np.array(lines)


def _decided(comparisons: tuple[Comparison, ...], case: Case, cost: str) -> Weighed:
    """Supported when all hold; not supported when one rules out a gain that matters; inconclusive otherwise."""
    alpha = case.claims.alpha

    def holds(row: Comparison) -> bool:
        return row.reached and row.holm < alpha and row.effect.estimate > 0

    def fails(row: Comparison) -> bool:
        return row.effect.high < case.relevant and not holds(row)

    weakest = min(comparisons, key=lambda row: (holds(row), not fails(row), row.effect.low))
    p = max(row.holm for row in comparisons)
    bounds = f"{weakest.effect.estimate:+.3f} [{weakest.effect.low:+.3f}, {weakest.effect.high:+.3f}]"
    words = f"against {weakest.comparator}: {bounds} in {case.judge}"
    if all(map(holds, comparisons)):
        count = f"all {len(comparisons)} comparisons hold" if len(comparisons) > 1 else "the comparison holds"
        return Weighed(comparisons, weakest, p, "supported", f"{count}; least {words}", None)
    if any(map(fails, comparisons)):
        ruled = f"a gain of {case.relevant:g} is ruled out" if case.relevant else "a gain is ruled out"
        return Weighed(comparisons, weakest, p, "not supported", f"{ruled} {words}", None)
    if not weakest.reached:
        reason = f"no comparator was run at {weakest.cost:.2f} {cost} or above: add a dearer one ({words})"
        return Weighed(comparisons, weakest, p, "inconclusive", reason, None)
    open_ones = sum(not holds(row) for row in comparisons)
    reason = f"{open_ones} of {len(comparisons)} comparisons not decided; {words}"
    return Weighed(comparisons, weakest, p, "inconclusive", reason, _needed(weakest, case))


def _needed(row: Comparison, case: Case) -> int | None:
    """Prompts with which a gain of one margin would be found, from the width of an interval."""
    if case.relevant <= 0 or row.effect.high <= row.effect.low:
        return None
    return prompts_for_difference(spread_of(row.effect), case.relevant, case.claims.alpha)

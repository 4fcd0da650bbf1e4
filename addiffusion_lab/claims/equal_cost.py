"""The policy against groups of comparators at equal mean cost: shared by H2 and H4.

A group's frontier is the upper hull of its samplers in (mean cost, mean quality): the strongest mixture
at any cost. The hull is chosen on the same prompts that it is judged on, which favours the comparators. Along the
policy's curve neighbouring costs per NFE are mixed; none is selected by the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from addiffusion_env.evaluation.frontier import Pairing, gains, mixture
from addiffusion_env.evaluation.statistics import holm
from addiffusion_env.samplers import named_traits
from addiffusion_lab.claims.base import Case, Comparison, Means, Outcome, Verdict, unanswered
from addiffusion_lab.claims.statistics import prompts_for_difference, spread_of


@dataclass(frozen=True)
class FamilyVerdict:
    """A family of comparisons, all of which must hold.

    Attributes:
        comparisons: the comparisons in order.
        weakest: the deciding comparison.
        p: largest adjusted p-value.
        verdict: see :class:`~addiffusion_lab.claims.base.Verdict`.
        reason: explanation as text.
        prompts_needed: number of prompts to detect a gain of one margin at the weakest; ``None`` where the claim is
            decided.
    """

    comparisons: tuple[Comparison, ...]
    weakest: Comparison
    p: float
    verdict: Outcome
    reason: str
    prompts_needed: int | None


def kind_of(sampler: str) -> str:
    """A sampler's kind of comparator: a constant stop counts as a fixed number of steps.

    >>> kind_of("stop:6"), kind_of("threshold_resample:-0.52")
    ('fixed', 'threshold_resample')
    """
    return named_traits(sampler).kind


def judge_groups(
    case: Case, name: str, claim: str, comparator: str, groups: Mapping[str, Sequence[str]], cost: str = "nfe"
) -> Verdict:
    """The verdict on a claim to exceed every group, each mixed with fixed steps so that it covers every cost.

    Args:
        case: its policy and curve must have records.
        name: the hypothesis.
        claim: the claim as text.
        comparator: comparator named in an unanswered verdict.
        groups: name -> samplers with records.
        cost: the measure to equalise.
    """
    fixed = [sampler for sampler in case.table.samplers if kind_of(sampler) == "fixed"]
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


def weigh(case: Case, groups: Mapping[str, Sequence[str]], cost: str = "nfe") -> FamilyVerdict | str:
    """Judges whether the policy exceeds every group at every point of its curve.

    Args:
        case: its policy and curve must have records.
        groups: name -> samplers with records.
        cost: the measure to equalise.

    Returns:
        The family, or a text saying why there is none.
    """
    curve = case.claims.points
    rivals = list(dict.fromkeys(name for members in groups.values() for name in members))
    means = case.table.means([*curve, *rivals], [case.judge, cost])
    if (least := case.claims.least_prompts) > len(means):
        return f"{len(means)} prompts have both {case.judge} and {cost} for all samplers, fewer than {least}"
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
    """(K,) weights of the curve's K costs per NFE for each point of comparison: one cost, or two neighbours."""
    if cost != "nfe" or not case.claims.nfe_points:
        return list(np.eye(len(own)))
    inside = [at for at in case.claims.nfe_points if own.min() <= at <= own.max()]
    return [mixture(own, float(at)) for at in inside]


def _compare(
    means: Means, curve: int, rows: Mapping[str, list[int]], points: Sequence[np.ndarray], case: Case, cost: str
) -> list[Comparison]:
    """One comparison per group and point, not adjusted yet."""
    quality, spent = means.values[case.judge], means.values[cost]
    labelled = [
        (
            name,
            Pairing(
                weights @ quality[:curve],
                weights @ spent[:curve],
                list(map(str, members)),
                quality[members],
                spent[members],
            ),
        )
        for name, members in rows.items()
        for weights in points
    ]
    found = gains([pairing for _, pairing in labelled], case.rng, 1 - case.claims.alpha, case.claims.resamples)
    unit = "NFE" if cost == "nfe" else cost
    return [
        Comparison(f"{name} at {row.cost:.2f} {unit}", row.gain, row.p, 1.0, row.cost, row.reached)
        for (name, _), row in zip(labelled, found, strict=True)
    ]


def _decided(comparisons: tuple[Comparison, ...], case: Case, cost: str) -> FamilyVerdict:
    """Supported when all hold; not supported when one rules out a relevant gain; inconclusive otherwise."""
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
        return FamilyVerdict(comparisons, weakest, p, "supported", f"{count}; least {words}", None)
    if any(map(fails, comparisons)):
        ruled = f"a gain of {case.relevant:g} is ruled out" if case.relevant else "a gain is ruled out"
        return FamilyVerdict(comparisons, weakest, p, "not supported", f"{ruled} {words}", None)
    if not weakest.reached:
        reason = f"no comparator was run at {weakest.cost:.2f} {cost} or above: add a more expensive one ({words})"
        return FamilyVerdict(comparisons, weakest, p, "inconclusive", reason, None)
    open_ones = sum(not holds(row) for row in comparisons)
    reason = f"{open_ones} of {len(comparisons)} comparisons not decided; {words}"
    return FamilyVerdict(comparisons, weakest, p, "inconclusive", reason, _needed(weakest, case))


def _needed(row: Comparison, case: Case) -> int | None:
    """Number of prompts to detect a gain of one margin, from the width of an interval."""
    if case.relevant <= 0 or row.effect.high <= row.effect.low:
        return None
    return prompts_for_difference(spread_of(row.effect), case.relevant, case.claims.alpha)

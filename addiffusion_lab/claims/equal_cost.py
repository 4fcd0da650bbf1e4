"""H2 and H4: the policy against groups of comparators at equal mean cost, along its whole curve.

A group's frontier is the upper hull of its samplers in (mean cost, mean quality): the strongest mixture
at any cost. The hull is chosen on the same prompts that it is judged on, which favours the comparators, the more
of them there are about the policy's cost; what is ruled out allows for it. Along the policy's curve none of its costs
per NFE is selected by the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from addiffusion_env.evaluation.frontier import Pairing, gains
from addiffusion_env.evaluation.statistics import holm
from addiffusion_env.samplers import named_traits
from addiffusion_lab.claims.base import Case, Comparison, Means, Outcome, Verdict, claim_p, missing, unanswered
from addiffusion_lab.claims.statistics import prompts_for_difference


def kind_of(sampler: str) -> str:
    """A sampler's kind of comparator: a constant stop counts as a fixed number of steps.

    >>> kind_of("stop:6"), kind_of("threshold_resample:-0.52")
    ('fixed', 'threshold_resample')
    """
    return named_traits(sampler).kind


MASKED = ",no_refine"
"""Suffix of the name of a policy with masked refine."""
MASKED_WORDS = "refine is only masked; a policy trained without it may do better (hypotheses.trained_without=RUN)"


def judge_frontier(case: Case) -> Verdict:
    """H2: supported when above the frontier of every kind of comparator at equal mean NFE, along the policy's curve.

    Each kind may be mixed with fixed steps, so that it has a frontier at every NFE. All comparisons form one family.
    """
    return _judge_kinds(case, "H2", "nfe", case.claims.kinds)


def judge_seconds(case: Case) -> Verdict:
    """H2 at equal mean seconds against fixed steps. Previews cost time and no NFE, so results may differ."""
    return _judge_kinds(case, "H2_seconds", "seconds", ("fixed",))


def _judge_kinds(case: Case, name: str, cost: str, kinds: Sequence[str]) -> Verdict:
    unit = "NFE" if cost == "nfe" else cost
    claim = f"{case.claims.policy} is better than {', '.join(kinds)} at equal mean {unit}, judged by {case.judge}"
    if why := missing(case, case.claims.points):
        return unanswered(name, claim, case, ", ".join(kinds), why)
    of_kind = {kind: [sampler for sampler in case.table.samplers if kind_of(sampler) == kind] for kind in kinds}
    for kind, members in of_kind.items():
        if not members:
            reason = f"no sampler of kind {kind!r} was run, and the claim is about every kind"
            return unanswered(name, claim, case, kind, reason)
    return judge_groups(case, name, claim, ", ".join(kinds), of_kind, cost)


def judge_refinement(case: Case) -> Verdict:
    """H4: supported when above the frontier of the policy without refinement at equal mean NFE, and every control.

    A policy that does not refine spends less. The difference may be spent on full-image steps: it is mixed with fixed
    schedules, so that there is a comparator at the refining policy's NFE.
    """
    claims = case.claims
    claim = f"{claims.policy} is better than the same policy without refinement at equal NFE, judged by {case.judge}"
    masked = all(name.endswith(MASKED) for name in claims.no_refine)
    how = "the policy with refine masked" if masked else "the policy trained without refinement"
    controls = {how: claims.no_refine, **claims.refine_controls}
    if not claims.no_refine:
        return unanswered("H4", claim, case, "the policy without refinement", "no policy without refinement was given")
    everyone = (*claims.points, *(name for members in controls.values() for name in members))
    if why := missing(case, everyone):
        return unanswered("H4", claim, case, ", ".join(claims.no_refine), why)
    verdict = judge_groups(case, "H4", claim, ", ".join(claims.no_refine), controls)
    return replace(verdict, reason=f"{verdict.reason}; {MASKED_WORDS}") if masked else verdict


def judge_groups(
    case: Case, name: str, claim: str, comparator: str, groups: Mapping[str, Sequence[str]], cost: str = "nfe"
) -> Verdict:
    """The verdict on a claim to exceed every group at every point of the policy's curve.

    Args:
        case: its policy and curve must have records.
        name: the hypothesis.
        claim: the claim as text.
        comparator: comparator named in an unanswered verdict.
        groups: name -> samplers with records; each is mixed with fixed steps, so that it covers every cost.
        cost: the measure to equalise.
    """
    fixed = [sampler for sampler in case.table.samplers if kind_of(sampler) == "fixed"]
    mixed = {group: tuple(dict.fromkeys((*members, *fixed))) for group, members in groups.items()}
    curve = case.claims.points
    rivals = list(dict.fromkeys(name for members in mixed.values() for name in members))
    means = case.table.means([*curve, *rivals], [case.judge, cost])
    if (least := case.claims.least_prompts) > len(means):
        why = f"{len(means)} prompts have both {case.judge} and {cost} for all samplers, fewer than {least}"
        return unanswered(name, claim, case, comparator, why)
    rows = {group: [len(curve) + rivals.index(member) for member in members] for group, members in mixed.items()}
    raw = _compare(means, len(curve), rows, case, cost)
    adjusted = holm({str(n): row.p for n, row in enumerate(raw)}, case.claims.alpha)
    comparisons = tuple(replace(row, holm=adjusted[str(n)].adjusted) for n, row in enumerate(raw))
    weakest, outcome, reason, needed = _decided(comparisons, case, cost)
    return Verdict(
        hypothesis=name,
        claim=claim,
        verdict=outcome,
        effect=weakest.effect,
        p=claim_p(comparisons),
        n=weakest.effect.n,
        comparator=weakest.comparator,
        judge=case.judge,
        margin=case.margin,
        reason=reason,
        comparisons=comparisons,
        prompts_needed=needed,
        provided=f"if each gain were {case.relevant:g}",
    )


def _compare(means: Means, curve: int, rows: Mapping[str, list[int]], case: Case, cost: str) -> list[Comparison]:
    """One comparison per group and point of the policy's curve, not adjusted yet."""
    quality, spent = means.values[case.judge], means.values[cost]
    labelled = [
        (name, Pairing(quality[point], spent[point], list(map(str, members)), quality[members], spent[members]))
        for name, members in rows.items()
        for point in range(curve)
    ]
    found = gains([pairing for _, pairing in labelled], case.rng, 1 - case.claims.alpha, case.claims.resamples)
    unit = "NFE" if cost == "nfe" else cost
    return [
        Comparison(
            f"{name} at {row.cost:.2f} {unit}",
            row.gain,
            row.p,
            1.0,
            row.cost,
            row.reached,
            row.below,
            row.most,
            row.spread,
        )
        for (name, _), row in zip(labelled, found, strict=True)
    ]


def _decided(comparisons: tuple[Comparison, ...], case: Case, cost: str) -> tuple[Comparison, Outcome, str, int | None]:
    """Supported when all hold; not supported when one rules out a relevant gain; inconclusive otherwise.

    Returns:
        The weakest comparison, the verdict, its reason, and for an undecided one the number of prompts to detect gains
        of one margin in all that do not hold.
    """

    def holds(row: Comparison) -> bool:
        return row.reached and row.holm < case.claims.alpha and row.effect.estimate > 0

    def fails(row: Comparison) -> bool:
        return row.most < case.relevant and not row.below and not holds(row)

    weakest = min(comparisons, key=lambda row: (holds(row), not fails(row), row.effect.low))
    words = f"against {weakest.comparator}: {weakest.effect.signed} in {case.judge}"
    if all(map(holds, comparisons)):
        count = f"all {len(comparisons)} comparisons hold" if len(comparisons) > 1 else "the comparison holds"
        return weakest, "supported", f"{count}; least {words}", None
    if any(map(fails, comparisons)):
        ruled = f"a gain of {case.relevant:g} is ruled out" if case.relevant else "a gain is ruled out"
        family = f" (at most {weakest.most:+.3f} over all {len(comparisons)})" if len(comparisons) > 1 else ""
        return weakest, "not supported", f"{ruled} {words}{family}", None
    if not weakest.reached:
        reason = f"no comparator was run at {weakest.cost:.2f} {cost} or above: add a more expensive one ({words})"
        return weakest, "inconclusive", reason, None
    if weakest.below:
        reason = f"no comparator was run at {weakest.cost:.2f} {cost} or below: add a cheaper one ({words})"
        return weakest, "inconclusive", reason, None
    left = [row for row in comparisons if not holds(row)]
    reason = f"{len(left)} of {len(comparisons)} comparisons not decided; {words}"
    return weakest, "inconclusive", reason, _needed(left, case)


def _needed(left: Sequence[Comparison], case: Case) -> int | None:
    """Number of prompts that find gains of one margin in all comparisons of ``left``, alike or not."""
    spread = max(row.spread for row in left)
    if case.relevant <= 0 or not spread > 0:
        return None
    return prompts_for_difference(spread, case.relevant, case.claims.alpha, 1 - 0.2 / len(left))

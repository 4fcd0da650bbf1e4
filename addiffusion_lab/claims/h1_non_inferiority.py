"""H1: the policy is not inferior to its references, at a mean NFE within the limit."""

from __future__ import annotations

import numpy as np

from addiffusion_env.evaluation.statistics import MarginTest, non_inferior
from addiffusion_lab.claims.base import Case, Comparison, Outcome, Verdict, missing, too_few, unanswered
from addiffusion_lab.claims.statistics import Margin, at_most, prompts_for_non_inferiority


def judge(case: Case) -> Verdict:
    """Supported when the policy is not inferior to any reference, and its mean NFE is below the limit.

    An intersection-union test: each part at alpha, with the largest p. Quality is paired by prompt and seed; the
    limit is tested too, since the NFE are also a sample. The reason notes missing references that check finished
    images (see :attr:`.Claims.checked`). A margin that was set after images had been judged supports no claim.
    """
    claims = case.claims
    references = (claims.reference, *claims.checked)
    shown = ", ".join(references)
    claim = (
        f"{claims.policy} is not inferior to {shown} with {claims.nfe_limit:g} NFE or fewer in the mean, "
        f"judged by {case.judge}"
    )
    why = missing(case, (claims.policy, *references))
    if not why and case.margin is None:
        why = f"no margin was set for {case.judge}: fix one in config before the run"
    if why:
        return unanswered("H1", claim, case, shown, why)
    means = case.table.means((claims.policy, *references), (case.judge, "nfe"))
    if why := too_few(len(means), case):
        return unanswered("H1", claim, case, shown, why, len(means))
    assert case.margin is not None
    first, *others = means.values[case.judge]
    tests = [non_inferior(first, other, case.margin.value, claims.alpha) for other in others]
    nfe = at_most(means.values["nfe"][0], claims.nfe_limit, claims.alpha)
    # What is ruled out may be any part: the bounds of all of them hold together (Bonferroni).
    share = claims.alpha / (len(tests) + 1)
    worst = [non_inferior(first, other, case.margin.value, share).difference.high for other in others]
    least = at_most(means.values["nfe"][0], claims.nfe_limit, share).difference.low
    decided = [
        _decided(test, nfe, case.margin, name, high, least)
        for test, name, high in zip(tests, references, worst, strict=True)
    ]
    order = ("not supported", "inconclusive", "supported")
    weakest = min(range(len(tests)), key=lambda place: (order.index(decided[place][0]), -tests[place].p))
    (outcome, reason), quality = decided[weakest], tests[weakest]
    needed, gap = None, first - others[weakest]
    if outcome == "inconclusive" and not quality.holds and np.ptp(gap) > 0:
        needed = prompts_for_non_inferiority(float(gap.std(ddof=1)), case.margin.value, alpha=claims.alpha)
    if not claims.checked:
        reason += "; no reference that checks finished images was run"
    return Verdict(
        hypothesis="H1",
        claim=claim,
        verdict=outcome,
        effect=quality.difference,
        p=max(nfe.p, *(test.p for test in tests)),
        n=len(means),
        comparator=references[weakest],
        judge=case.judge,
        margin=case.margin,
        reason=reason,
        comparisons=(
            *(
                Comparison(f"quality against {name}", test.difference, test.p, test.p)
                for name, test in zip(references, tests, strict=True)
            ),
            Comparison(f"mean NFE against the limit of {claims.nfe_limit:g}", nfe.difference, nfe.p, nfe.p),
        ),
        prompts_needed=needed,
        provided=f"against {references[weakest]} if there were no difference",
    )


def _decided(
    quality: MarginTest, nfe: MarginTest, margin: Margin, reference: str, most: float, least: float
) -> tuple[Outcome, str]:
    """The verdict on one reference; ``most`` and ``least`` bound its difference and the NFE over all parts together."""
    found, spent = quality.difference, nfe.difference
    bounds = f"{found.signed} ({found.level:.0%} interval)"
    cost = f"{spent.estimate:.2f} NFE [{spent.low:.2f}, {spent.high:.2f}]"
    if most < -quality.margin:
        return "not supported", f"it is worse than {reference} by more than {margin.value:g}: {bounds}"
    if least > nfe.margin:
        return "not supported", f"it spends {cost}, above the limit of {nfe.margin:g}"
    if quality.holds and nfe.holds and not margin.before_data:
        late = f"the margin of {margin.value:g} was set after {margin.records_before} records existed"
        return "inconclusive", f"{late}, so that it may have been chosen to fit: {bounds}"
    if quality.holds and nfe.holds:
        return "supported", f"{bounds} against {reference}, no less than -{margin.value:g}, with {cost}"
    if quality.holds:
        return "inconclusive", f"within the margin, but {cost} is not shown to be below {nfe.margin:g}"
    return "inconclusive", f"{bounds} reaches over the margin of {margin.value:g}"

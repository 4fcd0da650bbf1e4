"""H1: the policy is not inferior to the reference schedule, at a mean NFE within the limit."""

from __future__ import annotations

import numpy as np

from addiffusion_env.evaluation.statistics import (
    Margin,
    MarginTest,
    at_most,
    non_inferior,
    prompts_for_non_inferiority,
)
from addiffusion_lab.claims.base import (
    Case,
    Comparison,
    Outcome,
    Verdict,
    missing,
    too_few,
    unanswered,
)


def judge(case: Case) -> Verdict:
    """Supported when both one-sided tests hold (an intersection-union test: each at alpha, the larger p counts).

    The quality test is paired by prompt and seed; the other says that the mean NFE lies below the limit, not only
    that of this sample. A margin that was set after pictures had been judged supports nothing.
    """
    claims = case.claims
    claim = (
        f"{claims.policy} is not inferior to {claims.reference} with {claims.nfe_limit:g} NFE or fewer in the mean, "
        f"judged by {case.judge}"
    )
    why = missing(case, (claims.policy, claims.reference))
    if not why and case.margin is None:
        why = f"no margin was set for {case.judge}: fix one in config before the run"
    if why:
        return unanswered("H1", claim, case, claims.reference, why)
    means = case.table.means((claims.policy, claims.reference), (case.judge, "nfe"))
    if why := too_few(len(means), case):
        return unanswered("H1", claim, case, claims.reference, why, len(means))
    assert case.margin is not None
    first, second = means.values[case.judge]
    quality = non_inferior(first, second, case.margin.value, claims.alpha)
    nfe = at_most(means.values["nfe"][0], claims.nfe_limit, claims.alpha)
    outcome, reason = _decided(quality, nfe, case.margin, claims.reference)
    needed = None
    if outcome == "inconclusive" and not quality.holds and np.ptp(first - second) > 0:
        needed = prompts_for_non_inferiority(float((first - second).std(ddof=1)), case.margin.value, alpha=claims.alpha)
    return Verdict(
        hypothesis="H1",
        claim=claim,
        verdict=outcome,
        effect=quality.difference,
        p=max(quality.p, nfe.p),
        n=len(means),
        comparator=claims.reference,
        judge=case.judge,
        margin=case.margin,
        reason=reason,
        comparisons=(
            Comparison(f"quality against {claims.reference}", quality.difference, quality.p, quality.p),
            Comparison(f"mean NFE against the limit of {claims.nfe_limit:g}", nfe.difference, nfe.p, nfe.p),
        ),
        prompts_needed=needed,
    )


def _decided(quality: MarginTest, nfe: MarginTest, margin: Margin, reference: str) -> tuple[Outcome, str]:
    found, spent = quality.difference, nfe.difference
    bounds = f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    cost = f"{spent.estimate:.2f} NFE [{spent.low:.2f}, {spent.high:.2f}]"
    if found.high < -quality.margin:
        return "not supported", f"it is worse than {reference} by more than {margin.value:g}: {bounds}"
    if spent.low > nfe.margin:
        return "not supported", f"it spends {cost}, above the limit of {nfe.margin:g}"
    if quality.holds and nfe.holds and not margin.before_data:
        late = f"the margin of {margin.value:g} was set after {margin.records_before} records were there"
        return "inconclusive", f"{late}, so that it may have been chosen to fit: {bounds}"
    if quality.holds and nfe.holds:
        return "supported", f"{bounds} against {reference}, no less than -{margin.value:g}, with {cost}"
    if quality.holds:
        return "inconclusive", f"within the margin, but {cost} is not shown to be below {nfe.margin:g}"
    return "inconclusive", f"the interval {bounds} reaches over the margin of {margin.value:g}"

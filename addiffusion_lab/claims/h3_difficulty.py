"""H3: the policy spends more on prompts with more constraints, because it observes the prompt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from addiffusion_env.evaluation.statistics import holm, spearman
from addiffusion_lab.claims.base import (
    NO_JUDGE,
    Case,
    Comparison,
    Outcome,
    Verdict,
    claim_p,
    missing,
    too_few,
    unanswered,
)
from addiffusion_lab.claims.equal_cost import kind_of
from addiffusion_lab.claims.statistics import rank_correlation_gap, spearman_interval


def judge(case: Case) -> Verdict:
    """Supported when Spearman's correlation of NFE with constraints is above 0 and above that of a shuffled control.

    The first p is that of a permutation test, the second of a bootstrap over prompts that ranks each resample again;
    Holm over the two, and both must hold. The control is the same policy with other prompts' features: difficult
    images also cost more, so the correlation alone would not show that the prompt was used. Rules based on the prompt
    alone (``prompt_rule``) are also reported but not used, since they follow constraints by design.
    """
    claims = case.claims
    case = replace(case, judge=NO_JUDGE, margin=None)
    claim = f"{claims.policy} spends more NFE on prompts with more constraints, and more so than on shuffled prompts"
    control = claims.shuffled or "a shuffled-prompt control"
    why = missing(case, (claims.policy, control))
    if why:
        return unanswered("H3", claim, case, control, why)
    means = case.table.means((claims.policy, control), ("nfe",))
    if why := too_few(len(means), case):
        return unanswered("H3", claim, case, control, why, len(means))
    constraints = case.table.constraints[means.prompts]
    if not np.ptp(constraints):
        why = f"all {len(means)} prompts have the same number of constraints, {constraints[0]:g}"
        return unanswered("H3", claim, case, control, why, len(means))
    spent, shuffled = means.values["nfe"]
    if not np.ptp(spent):  # a correlation of 0, without a width, would rule out what a few other prompts may show
        why = f"all {len(means)} prompts took {spent[0]:g} NFE"
        return unanswered("H3", claim, case, control, why, len(means))
    level = 1 - claims.alpha
    test = spearman(constraints, spent, case.rng, claims.resamples)
    own = spearman_interval(spent, constraints, case.rng, level, claims.resamples)
    gap, gap_p = rank_correlation_gap(spent, constraints, shuffled, case.rng, level, claims.resamples)
    adjusted = holm({"own": test.p, "gap": gap_p}, claims.alpha)
    family = (
        Comparison("no correlation", own, test.p, adjusted["own"].adjusted),
        Comparison(f"the correlation of {control}", gap, gap_p, adjusted["gap"].adjusted),
    )
    outcome, reason, decides = _decided(family, case, control)
    return Verdict(
        hypothesis="H3",
        claim=claim,
        verdict=outcome,
        effect=decides.effect,
        p=claim_p(family),
        n=len(means),
        comparator=decides.comparator,
        judge=NO_JUDGE,
        margin=None,
        reason=reason,
        comparisons=(*family, *_rules(case)),
    )


def _decided(family: tuple[Comparison, Comparison], case: Case, control: str) -> tuple[Outcome, str, Comparison]:
    """The verdict, its reason and the comparison that decides: the first that rules out, else the weaker one."""
    least = case.claims.least_correlation
    own, gap = family
    words = f"rank correlation {own.effect.signed}, {gap.effect.signed} above {control}"
    weaker = max(family, key=lambda row: (row.effect.estimate <= 0, row.holm, row is own))
    if all(row.holm < case.claims.alpha and row.effect.estimate > 0 for row in family):
        return "supported", words, weaker
    if own.effect.high < least:
        return "not supported", f"{words}: a correlation of {least:g} is ruled out", own
    if gap.effect.high < least:
        return "not supported", f"{words}: one of {least:g} above that of shuffled prompts is ruled out", gap
    return "inconclusive", words, weaker


def _rules(case: Case) -> tuple[Comparison, ...]:
    """The policy's correlation minus that of each rule based on the prompt alone; not in the family."""
    rows = []
    for rule in (name for name in case.table.samplers if kind_of(name) == "prompt_rule"):
        means = case.table.means((case.claims.policy, rule), ("nfe",))
        if len(means) >= case.claims.least_prompts:
            constraints = case.table.constraints[means.prompts]
            policy, fixed = means.values["nfe"]
            gap, p = rank_correlation_gap(
                policy, constraints, fixed, case.rng, 1 - case.claims.alpha, case.claims.resamples
            )
            rows.append(Comparison(f"the correlation of {rule} (not in the family)", gap, p, float(np.nan)))
    return tuple(rows)

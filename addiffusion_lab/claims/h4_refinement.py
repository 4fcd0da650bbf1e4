"""H4: with refinement the policy is better than without, at equal NFE."""

from __future__ import annotations

from dataclasses import replace

from addiffusion_lab.claims.base import Case, Verdict, missing, unanswered
from addiffusion_lab.claims.equal_cost import judge_groups

MASKED = ",no_refine"
"""Suffix of the name of a policy with masked refine."""
MASKED_WORDS = "refine is only masked; a policy trained without it may do better (hypotheses.trained_without=RUN)"


def judge(case: Case) -> Verdict:
    """Supported when above the frontier of the policy without refinement at equal mean NFE, and every further control.

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

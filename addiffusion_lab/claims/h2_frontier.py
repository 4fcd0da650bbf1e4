"""H2: the policy is better than every comparator at equal cost, along its whole curve."""

from __future__ import annotations

from collections.abc import Sequence

from addiffusion_lab.claims.base import Case, Verdict, missing, unanswered
from addiffusion_lab.claims.equal_cost import judge_groups, kind_of


def judge(case: Case) -> Verdict:
    """Supported when above the frontier of every kind of comparator at equal mean NFE, along the policy's curve.

    Each kind may be mixed with fixed steps, so that it has a frontier at every NFE. All comparisons form one family.
    """
    return _judge(case, "H2", "nfe", case.claims.kinds)


def judge_seconds(case: Case) -> Verdict:
    """The same at equal mean seconds against fixed steps. Previews cost time and no NFE, so results may differ."""
    return _judge(case, "H2_seconds", "seconds", ("fixed",))


def _judge(case: Case, name: str, cost: str, kinds: Sequence[str]) -> Verdict:
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

"""Judges all claims from records and settings that were fixed before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from addiffusion_env.evaluation.records import Record
from addiffusion_env.evaluation.statistics import Margin
from addiffusion_env.seeding import stable_hash
from addiffusion_lab.claims import HYPOTHESES
from addiffusion_lab.claims.base import NO_JUDGE, Case, Claims, Verdict
from addiffusion_lab.claims.conflicts import MEASURE_OF, Use, settle
from addiffusion_lab.claims.images import ImageTable


def decide(
    records: Sequence[Record],
    claims: Claims,
    judges: Sequence[str],
    margins: Sequence[Margin],
    uses: Sequence[Use],
    names: Sequence[str] = tuple(HYPOTHESES),
) -> tuple[Verdict, ...]:
    """Judges claims; the same records give the same verdicts.

    The first judge that no sampler was optimised by or selects by decides. Further independent judges and those
    with a conflict are reported in addition, marked as such.

    Args:
        records: of all samplers.
        claims: the claims' samplers and criteria.
        judges: names of judges or measures (``"emoji_detector"``, ``"hps"``), fixed before the run.
        margins: one per measure; measures without one have no H1.
        uses: uses of scorers by samplers; see :mod:`addiffusion_lab.claims.conflicts`.
        names: registry names of the claims.

    Returns:
        For each claim: the deciding verdict first, then the others.

    Raises:
        ConfigError: when no judge is independent, or there are no records.
        UnknownNameError: for an unknown claim or judge.
    """
    backbone = records[0].backbone if records else ""
    functions = {name: HYPOTHESES.load(name) for name in names}
    roles = settle(judges, uses, backbone)
    measures = [*roles.independent, *roles.conflicted]
    table = ImageTable.of(records, (*measures, "nfe", "seconds"))
    by_measure = {MEASURE_OF.get(margin.measure, margin.measure): margin for margin in margins}
    found: list[Verdict] = []
    for name, function in functions.items():
        for judge in measures:
            verdict = function(Case(table, claims, judge, by_measure.get(judge), _generator(claims, name, judge)))
            found.append(_marked(verdict, judge, roles.independent, roles.conflicted))
            if verdict.judge == NO_JUDGE:  # the same for all judges
                break
    return tuple(found)


def deciding(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """The deciding verdicts, one per claim."""
    return tuple(verdict for verdict in verdicts if verdict.decides)


def _marked(verdict: Verdict, judge: str, independent: Sequence[str], conflicted: Mapping[str, str]) -> Verdict:
    if judge == independent[0] or verdict.judge == NO_JUDGE:
        return verdict
    if judge in independent:
        return replace(verdict, decides=False)
    reason = f"{verdict.reason}; {judge} cannot decide ({conflicted[judge]})"
    return replace(verdict, decides=False, independent=False, reason=reason)


def _generator(claims: Claims, name: str, judge: str) -> np.random.Generator:
    """Keyed, so that verdicts are independent of each other."""
    return np.random.default_rng(stable_hash("hypotheses", claims.seed, name, judge))

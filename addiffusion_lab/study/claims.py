"""The claims H1 to H4 on the emoji world, each with its figures and as it falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from addiffusion_env.evaluation.statistics import non_inferior, rank_correlation_gap, spearman
from addiffusion_lab.study.arms import Arm, Clock, Gain, gains

NFE_POINTS = (7.0, 8.0, 9.0, 10.0, 12.0)
MARGIN = 0.01
"""Of non-inferiority, in the share of correct pictures; set by the issue that asked for this study, before any run."""


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        name: H1 to H4.
        holds: whether every one of its conditions does.
        lines: conditions in words, with figures.
    """

    name: str
    holds: bool
    lines: tuple[str, ...]


def cheapest_within(arms: Sequence[Arm], limit: float) -> Arm:
    """The arm of the highest mean NFE that is at most ``limit``; the cheapest of all when none is."""
    ordered = sorted(arms, key=lambda arm: arm.nfe.mean())
    fitting = [arm for arm in ordered if arm.nfe.mean() <= limit]
    return fitting[-1] if fitting else ordered[0]


def h1(policy: Sequence[Arm], reference: Arm, limit: float = 7.0) -> Claim:
    """Non-inferior to the 50-step reference at a mean of 7 NFE or less."""
    arm = cheapest_within(policy, limit)
    test = non_inferior(arm.correct, reference.correct, MARGIN)
    spent = float(arm.nfe.mean())
    line = (
        f"{arm.name}: {arm.correct.mean():.3f} correct at {spent:.2f} NFE, {reference.name}: "
        f"{reference.correct.mean():.3f}; difference {test.difference} (90 %), margin {MARGIN}, p {test.p:.2g}"
    )
    return Claim("H1", test.holds and spent <= limit, (line,))


def h2(
    policy: Sequence[Arm],
    families: Mapping[str, Sequence[Arm]],
    clock: Clock,
    rng: np.random.Generator,
    beside: Sequence[str] = ("threshold-retry by liking", "threshold-retry by belief"),
) -> tuple[Claim, dict[str, dict[str, list[Gain]]]]:
    """At least .95 correct at 9 NFE or less, and above every family at equal NFE and at equal seconds.

    Families named in ``beside`` are shown and do not decide: the claim names its comparators, and these are stronger
    forms that were made for this study.
    """
    arm = cheapest_within(policy, 9.0)
    enough = bool(arm.correct.mean() >= 0.95 and arm.nfe.mean() <= 9)
    lines = [f"{arm.name}: {arm.correct.mean():.3f} correct at {arm.nfe.mean():.2f} NFE (wanted: .95 at 9 or less)"]
    every = [*policy, *(arm for family in families.values() for arm in family)]
    nfe = {arm.name: arm.nfe for arm in every}
    seconds = {arm.name: clock.seconds(arm) for arm in every}
    # The seconds of so many guided evaluations and a decode: what a fixed-step method of that length takes.
    spots = [(2 * points * clock.call + clock.decode) / 1000 for points in NFE_POINTS]
    found: dict[str, dict[str, list[Gain]]] = {"NFE": {}, "seconds": {}}
    for name, family in families.items():
        found["NFE"][name] = gains(policy, family, nfe, NFE_POINTS, rng)
        found["seconds"][name] = gains(policy, family, seconds, spots, rng)
    holds = enough
    for cost, table in found.items():
        for name, row in table.items():
            above = [gain.gain.low > 0 for gain in row]
            holds = holds and (all(above) or name in beside)
            worst = min(row, key=lambda gain: gain.gain.low)
            role = "beside, " if name in beside else ""
            lines.append(
                f"{role}against {name} at equal {cost}: above at {sum(above)} of {len(row)} points; smallest gain "
                f"{worst.gain} at {worst.at:.3g}"
            )
    return Claim("H2", holds, tuple(lines)), found


def h3(arm: Arm, control: Arm, demands: np.ndarray, hardness: np.ndarray, rng: np.random.Generator) -> Claim:
    """NFE rises with the number of demands in the prompt, and more so than when prompts are read wrongly.

    Beside it the correlation with how hard a prompt is for the model: its share of wrong tries, which decides nothing.
    """
    hard = spearman(arm.nfe, hardness, rng)
    found = spearman(arm.nfe, demands, rng)
    gap, p = rank_correlation_gap(arm.nfe, demands, control.nfe, rng)
    lines = (
        f"{arm.name}: rank correlation of NFE with demands {found.statistic:+.3f}, permutation p {found.p:.2g} "
        "(wanted: .3, below .001)",
        f"above the same policy on shuffled prompt embeddings by {gap}, p {p:.2g}",
        f"beside: with the share of a prompt's five tries that are wrong {hard.statistic:+.3f}, p {hard.p:.2g}",
    )
    return Claim("H3", bool(found.statistic >= 0.3 and found.p < 0.001 and gap.low > 0), lines)


def h4(
    policy: Sequence[Arm], without: Sequence[Arm], rng: np.random.Generator, least: float = 0.03
) -> tuple[Claim, list[Gain]]:
    """The policy beats the one that was trained without refinement at equal mean NFE."""
    costs = {arm.name: arm.nfe for arm in (*policy, *without)}
    spot = float(min(arm.nfe.mean() for arm in policy))
    row = gains(policy, without, costs, [spot, *NFE_POINTS], rng)
    holds = all(gain.gain.estimate >= least and gain.gain.low > 0 for gain in row)
    lines = tuple(f"at {gain.at:.2f} NFE: {gain.ours:.3f} against {gain.theirs:.3f}, {gain.gain}" for gain in row)
    return Claim("H4", holds, lines), row

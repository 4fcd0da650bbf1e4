"""How many prompts a claim needs, from a pilot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.statistics.arrays import binary, pair, positive_margin, scipy_stats, statsmodels
from addiffusion_env.evaluation.statistics.results import Interval
from addiffusion_env.evaluation.statistics.shares import discordant


@dataclass(frozen=True)
class Pilot:
    """What a pilot says of the differences to come.

    Attributes:
        n: prompts.
        difference: mean of first minus second; too uncertain to plan with, shown only.
        spread: standard deviation of the paired differences.
        spread_high: its upper 80 % confidence limit: plans made with the plain spread fail half of the time when the
            pilot is small (Browne 1995).
        discordant: share of prompts whose verdicts differ, or ``None`` where values are not verdicts of 0 and 1.
    """

    n: int
    difference: float
    spread: float
    spread_high: float
    discordant: float | None


@dataclass(frozen=True)
class PowerEstimate:
    """Prompts that find an effect.

    Attributes:
        effect: the smallest difference that should be found, in the measure's units.
        power: with which probability.
        alpha: of the two-sided test.
        prompts: with the pilot's spread.
        prompts_careful: with its upper 80 % limit.
        test: which test was planned for.
    """

    effect: float
    power: float
    alpha: float
    prompts: int
    prompts_careful: int
    test: str


def pilot_of(first: np.ndarray, second: np.ndarray) -> Pilot:
    """Reads a pilot of two methods, paired by prompt.

    Raises:
        ConfigError: for fewer than 2 prompts, or when no prompt differs, which says nothing about the spread.
    """
    first, second = pair(first, second)
    found = first - second
    if len(found) < 2 or np.ptp(found) == 0:
        raise ConfigError(
            f"a pilot of {len(found)} prompts without any spread cannot plan a study", "pilot more prompts"
        )
    spread = float(found.std(ddof=1))
    below = float(scipy_stats().chi2.ppf(0.2, len(found) - 1))
    share = sum(discordant(first, second)[:2]) / len(found) if binary(first, second) else None
    return Pilot(len(found), float(found.mean()), spread, spread * float(np.sqrt((len(found) - 1) / below)), share)


def plan_from(pilot: Pilot, effect: float, alpha: float = 0.05, power: float = 0.8) -> PowerEstimate:
    """Prompts with which a paired two-sided test finds ``effect``: McNemar's for verdicts, Student's otherwise.

    Args:
        pilot: from :func:`pilot_of`.
        effect: difference to find; its sign does not matter.
        alpha: of the two-sided test.
        power: wanted.
    """
    if pilot.discordant is None:
        few, many = (prompts_for_difference(s, effect, alpha, power) for s in (pilot.spread, pilot.spread_high))
        return PowerEstimate(effect, power, alpha, few, many, "paired t-test")
    # Clopper and Pearson's upper 80 % limit: with none discordant it is what would still be missed.
    seen = round(pilot.discordant * pilot.n)
    high = 1.0 if seen == pilot.n else float(scipy_stats().beta.ppf(0.8, seen + 1, pilot.n - seen))
    least = abs(effect)
    few, many = (prompts_for_shares(max(share, least), effect, alpha, power) for share in (pilot.discordant, high))
    return PowerEstimate(effect, power, alpha, few, many, "McNemar's test")


def prompts_needed(spread: float, margin: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Prompts with which :func:`equivalent` succeeds with probability ``power`` when there is no difference.

    ``n = ((z(1 - alpha) + z(1 - (1 - power) / 2)) * spread / margin) ** 2``, normal approximation.

    Args:
        spread: standard deviation of the paired differences, from a pilot.
        margin: in the same units.
        alpha: of each one-sided test.
        power: wanted.

    >>> prompts_needed(0.30, 0.02)
    1927
    """
    return _normal_prompts(spread, positive_margin(margin), 1 - alpha, 1 - (1 - power) / 2)


def prompts_for_non_inferiority(
    spread: float, margin: float, difference: float = 0.0, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Prompts with which :func:`non_inferior` succeeds with probability ``power``.

    Args:
        spread: standard deviation of the paired differences.
        margin: in the same units.
        difference: true mean of first minus second.
        alpha: of the one-sided test.
        power: wanted.

    Raises:
        ConfigError: when the true difference lies beyond the margin: no number of prompts is enough.

    >>> prompts_for_non_inferiority(0.30, 0.02)
    1392
    """
    room = positive_margin(margin) + difference
    if not room > 0:
        raise ConfigError(
            f"a method that is {-difference:g} worse cannot be shown non-inferior within {margin:g}",
            "plan for a smaller deficit, or choose another margin before the run",
        )
    return _normal_prompts(spread, room, 1 - alpha, power)


def prompts_for_difference(spread: float, effect: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Prompts with which a two-sided paired t-test finds a mean difference ``effect`` (statsmodels' ``TTestPower``).

    Raises:
        ConfigError: for an effect of 0 or a spread that is not above 0.

    >>> prompts_for_difference(0.5, 0.1)
    199
    """
    if not abs(effect) > 0 or not spread > 0:
        raise ConfigError(
            f"effect and spread must differ from 0, got {effect} and {spread}", "plan for the least effect that matters"
        )
    if abs(effect) >= 4 * spread:  # beyond what the solver brackets
        return 3
    solve = statsmodels("stats.power").TTestPower().solve_power
    found = solve(effect_size=abs(effect) / spread, alpha=alpha, power=power, alternative="two-sided")
    return max(3, int(np.ceil(float(np.asarray(found).item()))))


def prompts_for_shares(discordant: float, effect: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Prompts with which McNemar's test finds a difference of two paired shares.

    ``n = (z(1 - alpha / 2) sqrt(psi) + z(power) sqrt(psi - delta^2))^2 / delta^2`` with psi the share of discordant
    prompts (Connor 1987, equation 3).

    Args:
        discordant: psi, share of prompts that only one of the two gets right, in (0, 1].
        effect: delta, share of the first minus that of the second; at most psi in size.
        alpha: of the two-sided test.
        power: wanted.

    Raises:
        ConfigError: for an effect of 0, or one that so few discordant prompts cannot make.

    >>> prompts_for_shares(0.2, 0.1)
    155
    """
    delta = abs(effect)
    if not 0 < delta <= discordant <= 1:
        raise ConfigError(
            f"a difference of {effect:g} needs between {delta:g} and 1 of discordant prompts, got {discordant:g}",
            "plan for an effect between 0 and the discordant share",
        )
    normal = scipy_stats().norm
    both = normal.ppf(1 - alpha / 2) * np.sqrt(discordant) + normal.ppf(power) * np.sqrt(discordant - delta**2)
    return int(np.ceil((float(both) / delta) ** 2))


def prompts_for_correlation(correlation: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Prompts with which a rank correlation is found (Fisher's z, variance (1 + rho^2 / 2) / (n - 3)).

    The variance is Bonett and Wright's (2000) for Spearman's coefficient.

    Raises:
        ConfigError: unless the correlation lies in (-1, 1) and is not 0.

    >>> prompts_for_correlation(0.3)
    89
    """
    if not 0 < abs(correlation) < 1:
        raise ConfigError(f"a correlation must lie in (-1, 1) and not be 0, got {correlation}", "use 0.2, for example")
    normal = scipy_stats().norm
    both = float(normal.ppf(1 - alpha / 2) + normal.ppf(power))
    return int(np.ceil((both / np.arctanh(abs(correlation))) ** 2 * (1 + correlation**2 / 2) + 3))


def spread_of(interval: Interval) -> float:
    """Standard deviation a prompt behind a two-sided interval of a mean, by the normal approximation.

    >>> round(spread_of(Interval(0.0, -0.098, 0.098, 0.95, 400)), 3)
    1.0
    """
    critical = float(scipy_stats().norm.ppf((1 + interval.level) / 2))
    return (interval.high - interval.low) / (2 * critical) * float(np.sqrt(interval.n))


def _normal_prompts(spread: float, room: float, *quantiles: float) -> int:
    normal = scipy_stats().norm
    return int(np.ceil((sum(float(normal.ppf(q)) for q in quantiles) * spread / room) ** 2))

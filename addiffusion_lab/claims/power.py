"""How many prompts a claim needs."""

from __future__ import annotations

import numpy as np

from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.statistics.arrays import positive_margin, scipy_stats, statsmodels
from addiffusion_env.evaluation.statistics.results import Interval


def prompts_for_non_inferiority(
    spread: float, margin: float, difference: float = 0.0, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Number of prompts for which :func:`non_inferior` succeeds with probability ``power``.

    Args:
        spread: standard deviation of the paired differences.
        margin: in the same units.
        difference: true mean of first minus second.
        alpha: significance level of the one-sided test.
        power: required power.

    Raises:
        ConfigError: when the true difference lies beyond the margin: no number of prompts is enough.

    >>> prompts_for_non_inferiority(0.30, 0.02)
    1392
    """
    room = positive_margin(margin) + difference
    if not room > 0:
        raise ConfigError(
            f"a sampler that is {-difference:g} worse cannot be shown non-inferior within {margin:g}",
            "plan for a smaller deficit, or choose another margin before the run",
        )
    return _normal_prompts(spread, room, 1 - alpha, power)


def prompts_for_difference(spread: float, effect: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Number of prompts for which a two-sided paired t-test detects ``effect`` (statsmodels' ``TTestPower``).

    Raises:
        ConfigError: for an effect of 0 or a spread that is not above 0.

    >>> prompts_for_difference(0.5, 0.1)
    199
    """
    if not abs(effect) > 0 or not spread > 0:
        raise ConfigError(
            f"effect and spread must differ from 0, got {effect} and {spread}", "plan for the smallest relevant effect"
        )
    if abs(effect) >= 4 * spread:  # outside the solver's bracket
        return 3
    solve = statsmodels("stats.power").TTestPower().solve_power
    found = solve(effect_size=abs(effect) / spread, alpha=alpha, power=power, alternative="two-sided")
    return max(3, int(np.ceil(float(np.asarray(found).item()))))


def spread_of(interval: Interval) -> float:
    """Standard deviation per prompt implied by a two-sided interval of a mean, by the normal approximation.

    >>> round(spread_of(Interval(0.0, -0.098, 0.098, 0.95, 400)), 3)
    1.0
    """
    critical = float(scipy_stats().norm.ppf((1 + interval.level) / 2))
    return (interval.high - interval.low) / (2 * critical) * float(np.sqrt(interval.n))


def _normal_prompts(spread: float, room: float, *quantiles: float) -> int:
    normal = scipy_stats().norm
    return int(np.ceil((sum(float(normal.ppf(q)) for q in quantiles) * spread / room) ** 2))

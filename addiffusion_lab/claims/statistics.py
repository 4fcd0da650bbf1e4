"""Statistics of the claims: dated margins, limits, intervals of rank correlations, and numbers of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.statistics import (
    Interval,
    MarginTest,
    bootstrap_p,
    checked,
    constant,
    one_sided,
    pair,
    positive_margin,
    scipy_stats,
    statsmodels,
    t_interval,
    wilson,
)
from addiffusion_env.evaluation.tango import effective_counts


@dataclass(frozen=True)
class Margin:
    """The largest irrelevant deficit, and when it was set: one chosen after seeing the data is not valid evidence.

    Attributes:
        value: in the measure's units, above 0.
        measure: which measure it is for (``"correct"``).
        set_at: when the evaluation's manifest first had it; UTC, ISO 8601.
        records_before: number of records at that time; above 0 it may have been chosen after seeing results.
    """

    value: float
    measure: str
    set_at: str
    records_before: int

    def __post_init__(self) -> None:
        positive_margin(self.value)

    @property
    def before_data(self) -> bool:
        """Whether it was fixed before any image was judged."""
        return self.records_before == 0

    def __str__(self) -> str:
        when = "before any record" if self.before_data else f"after {self.records_before} records"
        return f"{self.value:g} in {self.measure}, in evaluation.json since {self.set_at}, {when}"


def at_most(values: np.ndarray, limit: float, alpha: float = 0.05) -> MarginTest:
    """Whether a mean lies below ``limit`` (one-sided); equal values may also lie on it.

    By the t-test and by Wilson's score of the values above the least one, which both must pass. Most images cost the
    least and few cost several times as much: where few of those were drawn, the mean and its error are too small at
    once, and the t-test alone passed 9 % of samples of 64 prompts whose true mean is the limit.

    Returns:
        A test whose ``difference`` is the mean itself with its (1 - 2 alpha) interval, and whose ``margin`` the limit.
    """
    values = checked(values, least=2)
    interval = t_interval(values, 1 - 2 * alpha)
    if constant(values):
        p = 0.0 if values[0] <= limit + 1e-9 else 1.0
        return MarginTest(interval, float(limit), p, p < alpha)
    least, span, n = float(values.min()), float(np.ptp(values)), len(values)
    count, _, unit = effective_counts(values - least, span)
    bound, p = (limit - least) / unit, one_sided(limit - values)
    if 0 < bound < 1:
        p = max(p, float(scipy_stats().norm.sf((bound - count / n) / np.sqrt(bound * (1 - bound) / n))))
    high = max(interval.high, least + wilson(values - least, 1 - 2 * alpha, span)[1])
    return MarginTest(replace(interval, high=high), float(limit), p, p < alpha)


def spearman_interval(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator, level: float = 0.95, resamples: int = 5000
) -> Interval:
    """Spearman's rank correlation over prompts with its percentile bootstrap interval; every resample is ranked."""
    return _bootstrapped(_spearman, pair(x, y), rng, level, resamples)[0]


def rank_correlation_gap(
    x: np.ndarray,
    y: np.ndarray,
    control: np.ndarray,
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = 5000,
) -> tuple[Interval, float]:
    """Spearman's correlation of ``x`` with ``y`` minus that of ``control`` with ``y``, over the same prompts.

    Args:
        x: (P,) values that are claimed to correlate with ``y``.
        y: (P,) values.
        control: (P,) values that should correlate less with ``y``.
        rng: draws the resamples.
        level: confidence.
        resamples: of prompts; each is ranked again.

    Returns:
        The difference with its percentile bootstrap interval, and its two-sided p.
    """

    def gap(x: np.ndarray, y: np.ndarray, control: np.ndarray, axis: int = -1) -> np.ndarray:
        return _spearman(x, y, axis) - _spearman(control, y, axis)

    (x, y), (control, _) = pair(x, y), pair(control, y)
    interval, draws = _bootstrapped(gap, (x, y, control), rng, level, resamples)
    return interval, bootstrap_p(draws)


def _bootstrapped(
    statistic: Callable[..., np.ndarray],
    values: Sequence[np.ndarray],
    rng: np.random.Generator,
    level: float,
    resamples: int,
) -> tuple[Interval, np.ndarray]:
    """A statistic of paired (P,) values with its interval, and its (resamples,) draws."""
    draws = scipy_stats().bootstrap(
        values, statistic, paired=True, vectorized=True, n_resamples=resamples, batch=500, method="percentile", rng=rng
    )
    low, high = np.quantile(draws.bootstrap_distribution, [(1 - level) / 2, (1 + level) / 2])
    interval = Interval(float(statistic(*values)), float(low), float(high), level, len(values[0]))
    return interval, draws.bootstrap_distribution


def _spearman(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman's correlations along an axis; 0 for constant values."""
    ranks = (scipy_stats().rankdata(values, axis=axis) for values in (x, y))
    left, right = (own - own.mean(axis, keepdims=True) for own in ranks)
    spread = (left**2).sum(axis) * (right**2).sum(axis)
    return np.where(spread > 0, (left * right).sum(axis) / np.sqrt(np.maximum(spread, 1e-18)), 0.0)


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
    quantiles = scipy_stats().norm.ppf([1 - alpha, power])
    return int(np.ceil((float(quantiles.sum()) * spread / room) ** 2))


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

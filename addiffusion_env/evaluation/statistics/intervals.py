"""Means over prompts with their confidence intervals."""

from __future__ import annotations

import numpy as np

from addiffusion_env.evaluation.statistics.arrays import (
    binary,
    checked,
    constant,
    differences,
    scipy_stats,
    statsmodels,
)
from addiffusion_env.evaluation.statistics.results import Interval


def mean_interval(values: np.ndarray, rng: np.random.Generator, level: float = 0.95, resamples: int = 5000) -> Interval:
    """The mean over prompts with its percentile bootstrap interval.

    Paired differences of verdicts are mostly 0 with a few -1 and 1. On such data the percentile interval has better
    coverage than the bias-corrected and accelerated one (.925 against .905 of 200 samples of 24 prompts with
    truth .08, .945 against .94 with 512), so it is used throughout.

    Raises:
        ConfigError: without any value.
    """
    values = checked(values)
    estimate = float(values.mean())
    if constant(values):  # no variation to resample
        return Interval(estimate, estimate, estimate, level, len(values))
    found = (
        scipy_stats()
        .bootstrap(
            (values,), np.mean, confidence_level=level, n_resamples=resamples, batch=500, method="percentile", rng=rng
        )
        .confidence_interval
    )
    return Interval(estimate, float(found.low), float(found.high), level, len(values))


def paired_interval(
    first: np.ndarray, second: np.ndarray, rng: np.random.Generator, level: float = 0.95, resamples: int = 5000
) -> Interval:
    """Mean of ``first - second`` over prompts with its bootstrap interval: prompts are resampled as pairs."""
    return mean_interval(differences(first, second), rng, level, resamples)


def share_interval(values: np.ndarray, rng: np.random.Generator, level: float = 0.95) -> Interval:
    """A share with its interval: Wilson's where every prompt is 0 or 1, the bootstrap's where seeds were averaged.

    Wilson's interval stays valid near 0 and 1, where a bootstrap of equal values has no width.
    """
    values = checked(values)
    if not binary(values):
        return mean_interval(values, rng, level)
    low, high = statsmodels("stats.proportion").proportion_confint(
        int(values.sum()), len(values), alpha=1 - level, method="wilson"
    )
    share = float(values.mean())
    # At 0 and 1 Wilson's bounds exclude the share by rounding error, and an error bar must not be negative.
    return Interval(share, min(float(low), share), max(float(high), share), level, len(values))


def t_interval(values: np.ndarray, level: float) -> Interval:
    """The mean with Student's interval."""
    values = checked(values, least=2)
    estimate, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    half = float(scipy_stats().t.ppf((1 + level) / 2, len(values) - 1)) * error
    return Interval(estimate, estimate - half, estimate + half, level, len(values))


def resampled(prompts: int, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """(resamples, prompts) frequency of each prompt in each resample: the weights of bootstrap means."""
    drawn = rng.integers(0, prompts, (resamples, prompts))
    drawn += prompts * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * prompts).reshape(resamples, prompts) / prompts


def bootstrap_p(draws: np.ndarray) -> float:
    """Two-sided p of the null hypothesis that a statistic is 0, from its (resamples,) bootstrap draws.

    Twice the share of draws on the less frequent side of 0, zeros counted on both sides, one draw added to each
    (Davison and Hinkley 1997, section 4.4): it is below alpha where the percentile interval of level 1 - alpha excludes
    0.

    >>> bootstrap_p(np.array([0.1, 0.2, -0.1])), bootstrap_p(np.zeros(9))
    (1.0, 1.0)
    """
    rarer = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(draws) + 1))

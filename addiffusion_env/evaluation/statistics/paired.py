"""Tests of paired differences: signed ranks, margins, families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from addiffusion_env.evaluation.statistics.arrays import (
    binary,
    checked,
    constant,
    differences,
    pair,
    positive_margin,
    scipy_stats,
    statsmodels,
)
from addiffusion_env.evaluation.statistics.intervals import t_interval
from addiffusion_env.evaluation.statistics.results import ROUND, Adjusted, Interval, MarginTest, Significance
from addiffusion_env.evaluation.statistics.shares import discordant, paired_share_interval, paired_share_score

Key = TypeVar("Key", bound=str)


def wilcoxon(first: np.ndarray, second: np.ndarray) -> Significance:
    """Wilcoxon's signed-rank test; prompts without a difference are ranked, then dropped (Pratt 1959).

    Early stops cause many exact zeros; dropping them before ranking would overstate the remaining differences.
    A large p is no evidence of equality: use :func:`non_inferior` for that.
    """
    found_differences = np.round(differences(first, second), ROUND)
    if not found_differences.any():
        return Significance(0.0, 1.0, len(found_differences))
    found = scipy_stats().wilcoxon(found_differences, zero_method="pratt")
    return Significance(float(found.statistic), float(found.pvalue), len(found_differences))


def holm(p_values: Mapping[Key, float], alpha: float = 0.05) -> dict[Key, Adjusted]:
    """Holm's step-down adjustment over one family of tests."""
    if not p_values:
        return {}
    rejected, adjusted, *_ = statsmodels("stats.multitest").multipletests(
        list(p_values.values()), alpha=alpha, method="holm"
    )
    rows = zip(p_values.items(), adjusted, rejected, strict=True)
    return {name: Adjusted(float(p), float(new), bool(out)) for (name, p), new, out in rows}


def non_inferior(first: np.ndarray, second: np.ndarray, margin: float, alpha: float = 0.05) -> MarginTest:
    """Whether ``first`` is at most ``margin`` worse than ``second`` in the mean (one-sided, paired).

    Tango's score test where every value is 0 or 1, Student's otherwise.
    """
    first, second = pair(first, second)
    margin = positive_margin(margin)
    p = _worse_by(first, second, margin)
    return MarginTest(_margin_interval(first, second, alpha), margin, p, p < alpha)


def at_most(values: np.ndarray, limit: float, alpha: float = 0.05) -> MarginTest:
    """Whether a mean lies below ``limit`` (one-sided t-test); equal values may also lie on it.

    Returns:
        A test whose ``difference`` is the mean itself with its (1 - 2 alpha) interval, and whose ``margin`` the limit.
    """
    values = checked(values, least=2)
    if constant(values):
        p = 0.0 if values[0] <= limit + 1e-9 else 1.0
    else:
        p = _one_sided(limit - values)
    return MarginTest(t_interval(values, 1 - 2 * alpha), float(limit), p, p < alpha)


def _margin_interval(first: np.ndarray, second: np.ndarray, alpha: float) -> Interval:
    if binary(first, second):
        return paired_share_interval(first, second, 1 - 2 * alpha)
    return t_interval(first - second, 1 - 2 * alpha)


def _worse_by(first: np.ndarray, second: np.ndarray, margin: float) -> float:
    """The p-value of the null hypothesis that ``first`` is worse than ``second`` by ``margin`` or more."""
    if binary(first, second):
        return float(scipy_stats().norm.sf(paired_share_score(*discordant(first, second), -margin)))
    shifted = checked(first - second, least=2) + margin
    shares = all(values.min() >= 0 and values.max() <= 1 for values in (first, second))
    if shares and constant(shifted) and shifted[0] > 0:
        # Shares that differ by `margin` differ on at least that share of prompts: the probability of seeing none.
        return float((1 - min(1.0, margin)) ** len(shifted))
    return _one_sided(shifted)


def _one_sided(values: np.ndarray) -> float:
    """The p-value of the null hypothesis that the mean is 0 or less."""
    values = checked(values, least=2)
    if constant(values):  # no spread: the mean is exact
        return 0.0 if values[0] > 0 else 1.0
    return float(scipy_stats().ttest_1samp(values, 0.0, alternative="greater").pvalue)

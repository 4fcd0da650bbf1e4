"""Paired shares against a margin: Tango's score test, which stays valid when few prompts differ.

Reference: T. Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample
design, Statistics in Medicine 17 (1998) 891-908, equations 7 to 12.
"""

from __future__ import annotations

import numpy as np

from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.statistics.arrays import binary, pair, scipy_optimize, scipy_stats
from addiffusion_env.evaluation.statistics.results import Interval


def paired_share_score(first_only: int, second_only: int, prompts: int, difference: float) -> float:
    """Tango's score: about standard normal when the shares of first and second truly differ by ``difference``.

    The variance is that of the most likely table *under the hypothesis*, so it does not vanish when no prompt
    differs.

    Args:
        first_only: number of prompts on which only the first sampler is correct.
        second_only: number of prompts on which only the second one is.
        prompts: total number of prompts.
        difference: hypothetical share of first minus second, in (-1, 1).

    The paper's example, 44 lenses, one discordant, margin .1:

    >>> round(paired_share_score(0, 1, 44, -0.1), 3)
    1.709
    """
    b, c, n, delta = first_only, second_only, prompts, difference
    linear = -b - c + (2 * n - b + c) * delta
    constant = -c * delta * (1 - delta)
    root = np.sqrt(max(0.0, linear**2 - 8 * n * constant))
    share = (root - linear) / (4 * n)  # most likely share of second-only prompts under the hypothesis
    variance = n * (2 * share + delta * (1 - delta))
    top = b - c - n * delta
    if variance <= 1e-12 * n:
        return 0.0 if abs(top) < 1e-9 else float(np.copysign(np.inf, top))
    return float(top / np.sqrt(variance))


def paired_share_interval(first: np.ndarray, second: np.ndarray, level: float = 0.95) -> Interval:
    """Difference of two paired shares with Tango's score interval: the differences that the score does not reject.

    Raises:
        ConfigError: when a value is neither 0 nor 1.
    """
    first, second = pair(first, second)
    if not binary(first, second):
        raise ConfigError("a score interval needs verdicts of 0 and 1", "use paired_interval where seeds were averaged")
    b, c, n = discordant(first, second)
    critical = float(scipy_stats().norm.ppf((1 + level) / 2))
    estimate = (b - c) / n

    def bound(side: float) -> float:
        end = side * (1 - 1e-9)

        def beyond(delta: float) -> float:
            return paired_share_score(b, c, n, delta) + side * critical

        if side * beyond(end) > 0 or abs(estimate - end) < 1e-6:  # not rejected at the end of the range
            return side
        return float(scipy_optimize().brentq(beyond, min(estimate, end), max(estimate, end), xtol=1e-9))

    return Interval(estimate, bound(-1.0), bound(1.0), level, n)


def discordant(first: np.ndarray, second: np.ndarray) -> tuple[int, int, int]:
    """(number correct only in first, only in second, number of prompts) of verdicts of 0 and 1."""
    return int((first > second).sum()), int((first < second).sum()), len(first)

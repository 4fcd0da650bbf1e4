"""Tango's score for the mean of paired differences: it stays valid where few prompts differ, or none.

T. Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design,
Statistics in Medicine 17 (1998) 891-908, equations 7 to 12. Differences of other sizes than 1 (averages over seeds,
mixtures of samplers, costs converted into quality) are brought to counts by :func:`effective_counts`.
"""

from __future__ import annotations

import numpy as np


def paired_share_score(first_only: float, second_only: float, prompts: int, difference: float) -> float:
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


def score_bounds(first_only: float, second_only: float, prompts: int, critical: float) -> tuple[float, float]:
    """The smallest and the largest difference whose :func:`paired_share_score` is within ``critical``.

    Without a prompt that differs the largest is critical^2 / (prompts + critical^2):

    >>> low, high = score_bounds(0, 0, 20, 1.959964)
    >>> round(low, 3), round(high, 3)
    (-0.161, 0.161)
    """
    high = _highest(first_only, second_only, prompts, critical)
    return -_highest(second_only, first_only, prompts, critical), high


def _highest(first_only: float, second_only: float, prompts: int, critical: float) -> float:
    low, high = (first_only - second_only) / prompts, 1 - 1e-9
    if low >= high or paired_share_score(first_only, second_only, prompts, high) >= -critical:
        return 1.0  # not rejected at the end of the range
    for _ in range(40):  # the score falls with the difference
        middle = (low + high) / 2
        if paired_share_score(first_only, second_only, prompts, middle) >= -critical:
            low = middle
        else:
            high = middle
    return high


def effective_counts(differences: np.ndarray, unit: float = 1.0) -> tuple[float, float, float]:
    """Numbers of prompts with a difference of plus and of minus one unit that have the mean and variance of others.

    Args:
        differences: (P,) paired differences.
        unit: size of a difference that may be seen on prompts on which there is none so far. It is averaged in with
            the weight of their share, as if it had been seen once: few differences say little about the size of others.

    Returns:
        Both numbers, and the unit: the mean square of the differences over their mean size. With differences of 0 and
        +-1 these are the discordant prompts, and 1.

    >>> effective_counts(np.array([0.5, 0.5, -0.5]))
    (2.0, 1.0, 0.5)
    >>> effective_counts(np.array([0.0, 1.0, 1.0, -1.0]))
    (2.0, 1.0, 1.0)
    """
    size = np.abs(differences)
    once = float((size <= 1e-12).mean()) * unit
    total = float(size.sum()) + once
    if not total > 0:
        return 0.0, 0.0, 0.0
    unit = (float((size**2).sum()) + once * unit) / total
    return float(differences.clip(min=0).sum() / unit), float(-differences.clip(max=0).sum() / unit), unit

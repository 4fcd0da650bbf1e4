"""Rank correlation with a permutation test."""

from __future__ import annotations

import numpy as np

from addiffusion_env.evaluation.statistics.arrays import pair, scipy_stats
from addiffusion_env.evaluation.statistics.results import Significance


def spearman(x: np.ndarray, y: np.ndarray, rng: np.random.Generator, permutations: int = 9999) -> Significance:
    """Spearman's rank correlation with a two-sided permutation test, with ties handled.

    The smallest p that ``permutations`` can give is 1 / (permutations + 1). For constant values the correlation is 0.
    """
    stats = scipy_stats()
    x, y = pair(x, y)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Significance(0.0, 1.0, len(x))
    # Spearman's coefficient is Pearson's of the ranks; permuting one side does not change the spread of either.
    left, right = (_standard(stats.rankdata(values)) for values in (x, y))
    found = stats.permutation_test(
        (left,),
        lambda shuffled, axis: (shuffled * right).mean(axis=axis),
        permutation_type="pairings",
        n_resamples=permutations,
        batch=500,
        vectorized=True,
        rng=rng,
    )
    return Significance(float(found.statistic), float(found.pvalue), len(x))


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()

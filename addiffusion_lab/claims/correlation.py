"""Bootstrap intervals of rank correlations; every resample is ranked again."""

from __future__ import annotations

import numpy as np

from addiffusion_env.evaluation.statistics import Interval, bootstrap_p, resampled
from addiffusion_env.evaluation.statistics.arrays import pair


def spearman_interval(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator, level: float = 0.95, resamples: int = 5000
) -> Interval:
    """Spearman's rank correlation over prompts with its percentile bootstrap interval."""
    x, y = pair(x, y)
    draws = np.concatenate([_correlations(resampled(len(x), rng, n), x, y) for n in _chunks(resamples)])
    return _interval(_spearman(x, y), draws, level, len(x))


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
    (x, y), (control, _) = pair(x, y), pair(control, y)
    draws = []
    for count in _chunks(resamples):
        weights = resampled(len(y), rng, count)
        draws.append(_correlations(weights, x, y) - _correlations(weights, control, y))
    gaps = np.concatenate(draws)
    return _interval(_spearman(x, y) - _spearman(control, y), gaps, level, len(y)), bootstrap_p(gaps)


def _interval(estimate: float, draws: np.ndarray, level: float, prompts: int) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), level, prompts)


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    return float(_correlations(np.full((1, len(x)), 1 / len(x)), x, y)[0])


def _correlations(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(R,) Spearman's correlations under (R, P) weights that sum to 1 per row; 0 for constant values."""
    left, right = _midranks(weights, x), _midranks(weights, y)
    products = (weights * left * right).sum(1)
    spread = (weights * left**2).sum(1) * (weights * right**2).sum(1)
    return np.where(spread > 1e-18, products / np.sqrt(np.maximum(spread, 1e-18)), 0.0)


def _midranks(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(R, P) midranks of ``values`` in each weighted sample, as shares, minus their mean of one half."""
    _, group = np.unique(values, return_inverse=True)
    members = np.zeros((len(values), group.max() + 1))
    members[np.arange(len(values)), group] = 1.0
    mass = weights @ members
    return (np.cumsum(mass, axis=1) - mass / 2)[:, group] - 0.5


def _chunks(total: int, size: int = 500) -> list[int]:
    return [min(size, total - first) for first in range(0, total, size)]

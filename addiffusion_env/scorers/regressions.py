"""The regressions of a calibrator: least squares of two groups, and logistic regression of probabilities."""

from __future__ import annotations

import numpy as np


def group_regressions(
    inputs: np.ndarray, scores: np.ndarray, right: np.ndarray, pull: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted ridge regression of each group and the inverse covariance of its residuals."""
    means, precisions = [], []
    for weight in (right, 1 - right):
        weighted = inputs.T * weight
        mean = np.linalg.solve(weighted @ inputs + pull, weighted @ scores)
        error = scores - inputs @ mean
        covariance = (error.T * weight) @ error / max(weight.sum(), 1e-9)
        floor = 1e-3 * np.diag(scores.var(0))  # a group of one image has no variance
        means.append(mean)
        precisions.append(np.linalg.inv(covariance + floor))
    return np.stack(means), np.stack(precisions)


def logistic(
    inputs: np.ndarray,
    right: np.ndarray,
    start: np.ndarray,
    pull: np.ndarray,
    steps: int = 5,
    weight: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Weighted ridge logistic regression of probabilities, a few Newton steps from the previous solution."""
    found = start.copy()
    for _ in range(steps):
        share = 1 / (1 + np.exp(-inputs @ found))
        slope = (inputs.T * (weight * share * (1 - share))) @ inputs + pull
        found += np.linalg.solve(slope, inputs.T @ (weight * (right - share)) - pull @ found)
    return found


def standardised_logistic(inputs: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(5,) weights of (N, 5) inputs, the first of which is constant, for (N,) probabilities; a ridge of one image."""
    centre, spread = inputs.mean(0), np.maximum(inputs.std(0), 1e-9)
    centre[0], spread[0] = 0.0, 1.0
    pull = np.diag([1e-3, *[1.0] * (inputs.shape[1] - 1)])
    weights = logistic((inputs - centre) / spread, target, np.zeros(inputs.shape[1]), pull, steps=25) / spread
    weights[0] -= weights @ centre
    return weights

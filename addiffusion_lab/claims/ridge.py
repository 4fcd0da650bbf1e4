"""Ridge regression for more inputs than images, its strength chosen on the images that it is fitted to."""

from __future__ import annotations

import numpy as np

STRENGTHS = tuple(10.0 ** np.arange(-3, 4))
"""Penalties, as multiples of the number of inputs."""
FOLDS = 4


def crossed(
    inputs: np.ndarray, target: np.ndarray, halves: tuple[np.ndarray, np.ndarray], within: bool = False
) -> np.ndarray:
    """(P, T) predictions for each half of the rows by a regression that is fitted to the other.

    Args:
        inputs: (P, T, D) of T attempts of each of P prompts.
        target: (P, T).
        halves: the rows of both halves.
        within: whether inputs and target are taken relative to their mean over the prompt's attempts, so that only
            what distinguishes these is fitted.
    """
    values, wanted = inputs.astype(np.float64), target.astype(np.float64)
    if within:
        values, wanted = values - values.mean(1, keepdims=True), wanted - wanted.mean(1, keepdims=True)
    found = np.zeros(target.shape)
    for fitted, judged in (halves, halves[::-1]):
        seen = values[fitted].reshape(-1, values.shape[-1])
        centre, spread = seen.mean(0), np.maximum(seen.std(0), 1e-9)
        rows = ((values[np.concatenate([fitted, judged])] - centre) / spread).reshape(-1, values.shape[-1])
        group = np.repeat(np.arange(len(fitted)) % FOLDS, values.shape[1])
        count = len(group)
        said = _chosen(rows @ rows.T / values.shape[-1], wanted[fitted].reshape(-1), group)
        found[judged] = said[count:].reshape(len(judged), -1)
    return found


def _chosen(kernel: np.ndarray, target: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Predictions of every row of a kernel whose first rows have a target, at the strength of the least error."""
    count = len(target)
    error = np.zeros(len(STRENGTHS))
    for held in range(FOLDS):
        kept, left = np.flatnonzero(group != held), np.flatnonzero(group == held)
        told = _solved(kernel[np.ix_(kept, kept)], target[kept], kernel[np.ix_(left, kept)], STRENGTHS)
        error += ((told - target[left]) ** 2).sum(1)
    best = STRENGTHS[int(error.argmin())]
    return _solved(kernel[:count, :count], target, kernel[:, :count], (best,))[0]


def _solved(own: np.ndarray, target: np.ndarray, other: np.ndarray, strengths: tuple[float, ...]) -> np.ndarray:
    """(S, N) predictions of the rows ``other`` at each strength."""
    values, vectors = np.linalg.eigh(own)
    mean = target.mean()
    turned = vectors.T @ (target - mean)
    return np.stack([mean + other @ (vectors @ (turned / (values + strength))) for strength in strengths])

"""How well a calibrator's probabilities agree with a held-out judge, at each kind of finished image of a table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu

from addiffusion_env.evaluation.sections import Section, Table
from addiffusion_env.scorers.utility import Utility
from addiffusion_env.tabular.table import AttemptTable

BINS = (0.0, 0.2, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Edges of the bins of the reliability table: narrow where images are accepted."""


@dataclass(frozen=True)
class Calibration:
    """Agreement of probabilities with verdicts at one place of an attempt.

    Attributes:
        place: which images, in words.
        images: how many.
        correct: share that the judge calls correct.
        said: mean probability.
        auc: of the probability, over all images; .5 is chance.
        within: the same over pairs of one prompt, of which one is correct and one is not; NaN without a pair.
        brier: mean squared difference of probability and verdict; ``correct * (1 - correct)`` for the base rate.
        bins: (low, high, images, mean probability, share correct) of each bin with images.
    """

    place: str
    images: int
    correct: float
    said: float
    auc: float
    within: float
    brier: float
    bins: tuple[tuple[float, float, int, float, float], ...]


def calibrations(table: AttemptTable, utility: Utility) -> list[Calibration]:
    """Measures every place of finished images; the table must hold verdicts."""
    found, odds = [], utility(table.preference, table.clip_score, table.clip_text)
    names = ("end of the schedule", "early exit before the first evaluation")
    for name, place in zip(names, table.finished_places, strict=False):
        said, verdict = 1 / (1 + np.exp(-odds[:, :, place])), table.correct[:, :, place]
        found.append(agreement(name, said, verdict))
    return found


def agreement(place: str, said: np.ndarray, verdict: np.ndarray) -> Calibration:
    """Compares (P, T) probabilities with (P, T) verdicts; entries without a verdict are left out."""
    known = np.isfinite(said) & np.isfinite(verdict)
    flat, right = said[known], verdict[known]
    at = np.clip(np.searchsorted(BINS, flat, side="right") - 1, 0, len(BINS) - 2)
    bins = tuple(
        (BINS[k], BINS[k + 1], int((at == k).sum()), float(flat[at == k].mean()), float(right[at == k].mean()))
        for k in range(len(BINS) - 1)
        if (at == k).any()
    )
    brier = float(((flat - right) ** 2).mean())
    within = within_prompts(said, verdict)
    return Calibration(place, len(flat), float(right.mean()), float(flat.mean()), auc(flat, right), within, brier, bins)


def auc(score: np.ndarray, verdict: np.ndarray) -> float:
    """Probability that a correct image scores above an incorrect one, ties counted half; NaN without one of each.

    >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    0.75
    """
    right, wrong = score[verdict == 1], score[verdict == 0]
    if not len(right) or not len(wrong):
        return float("nan")
    return float(mannwhitneyu(right, wrong).statistic / (len(right) * len(wrong)))


def within_prompts(score: np.ndarray, verdict: np.ndarray) -> float:
    """:func:`auc` over pairs of images of the same prompt, from (P, T) scores and verdicts."""
    above = pairs = 0.0
    for values, judged in zip(score, np.where(np.isfinite(score), verdict, np.nan), strict=True):
        right, wrong = values[judged == 1], values[judged == 0]
        above += (right[:, None] > wrong).sum() + 0.5 * (right[:, None] == wrong).sum()
        pairs += len(right) * len(wrong)
    return above / pairs if pairs else float("nan")


def calibration_section(found: list[Calibration]) -> Section:
    """The section of the page of results."""
    head = (
        "images",
        "number",
        "correct",
        "mean probability",
        "AUC",
        "within a prompt",
        "Brier",
        "Brier of the base rate",
    )
    rows = tuple(
        (
            one.place,
            str(one.images),
            *(f"{value:.3f}" for value in (one.correct, one.said, one.auc, one.within, one.brier)),
            f"{one.correct * (1 - one.correct):.3f}",
        )
        for one in found
    )
    reliability = tuple(
        (one.place, f"{low:g} to {high:g}", str(number), f"{said:.3f}", f"{right:.3f}")
        for one in found
        for low, high, number, said, right in one.bins
    )
    return Section(
        "The calibrator against the judge",
        (
            "The calibrator is fitted to scores of training prompts, without verdicts.",
            Table(head, rows),
            Table(("images", "probability", "number", "mean probability", "share correct"), reliability),
        ),
    )

"""Rules of checked attempts on recorded attempts: what each spends and returns, and the frontier of the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from addiffusion_env.agents.rule_policy import Rule
from addiffusion_env.errors import ConfigError
from addiffusion_env.scorers.utility import Calibrator
from addiffusion_env.tabular.table import AttemptTable

THRESHOLDS = (0.0, *np.round(np.linspace(0.05, 0.95, 19), 2).tolist(), 0.97, 0.98, 0.99, 0.995, 1.0)
"""Calibrated probabilities that are tried as thresholds; 0 accepts the first image, 1 makes every attempt."""
FOLDS = 4
FEWEST_PROMPTS = 16
"""Fewest prompts that a calibrator is fitted to."""
PROMPTS_PER_DIRECTION = 4
MOST_DIRECTIONS = 64


def fit(table: AttemptTable, rows: np.ndarray | None = None) -> Calibrator:
    """Fits a calibrator to the finished images of some prompts (all by default); verdicts are not read.

    Raises:
        ConfigError: for fewer than :data:`FEWEST_PROMPTS` prompts in the table.
    """
    if len(table) < FEWEST_PROMPTS:
        raise ConfigError(
            f"{len(table)} prompts were recorded, and a calibrator needs {FEWEST_PROMPTS}",
            "run the same command again with more minutes: it continues with what is recorded",
        )
    rows = np.arange(len(table)) if rows is None else rows
    places = [table.finish, -1] if table.starts else [table.finish]
    directions = max(1, min(MOST_DIRECTIONS, len(rows) // PROMPTS_PER_DIRECTION, table.clip_text.shape[1]))
    scores = (values[rows][:, :, places].reshape(len(rows), -1) for values in (table.preference, table.clip_score))
    # One scale of scores for all prompts: a scale of each, as for training on more prompts, would be fitted to noise.
    return Calibrator.fit(*scores, table.clip_text[rows], directions=directions, absolute=True)


def held_out_log_odds(table: AttemptTable, folds: int = FOLDS) -> np.ndarray:
    """(P, T, Q) log-odds of each image by a calibrator that was fitted to the prompts of the other folds."""
    fold = np.arange(len(table)) % folds
    found = np.zeros(table.preference.shape)
    for held_out in range(folds):
        rows = fold == held_out
        calibrator = fit(table, np.flatnonzero(~rows))
        scores = (np.nan_to_num(values[rows]) for values in (table.preference, table.clip_score))
        found[rows] = calibrator(*scores, table.clip_text[rows])
    return found


def measured_rules(table: AttemptTable, log_odds: np.ndarray) -> list[Rule]:
    """Every rule on the recorded attempts: each early exit, for the first attempt or all, at each threshold.

    Attempts are exchangeable, so a rule is measured with every one of them as the first.

    Args:
        table: P images, T attempts each.
        log_odds: (P, T, Q) of their images.
    """
    finish, attempts = table.finish, table.attempts
    exits: list[tuple[int | None, int]] = [(None, 0)]
    ends: dict[int | None, int] = {None: finish}
    ends.update((step, finish + 1 + place) for place, step in enumerate(table.steps))
    ends.update({0: table.nfe.shape[2] - 1} if table.starts else {})
    for step, early in list(ends.items())[1:]:
        if np.allclose(table.nfe[:, :, early], table.nfe[:, :, finish]):
            continue  # it takes the rest of the schedule
        exits += [(step, 1), (step, attempts)] if attempts > 1 else [(step, 1)]
    rules = []
    for step, early in exits:
        places = np.where(np.arange(attempts) < early, ends[step], finish)
        for threshold in THRESHOLDS if attempts > 1 else (0.0,):
            rule = Rule(step, early, threshold, 1.0)
            nfe, probability = outcome(table.nfe, log_odds, places, rule.least_utility)
            rules.append(replace(rule, nfe=nfe, probability=probability))
    return rules


def outcome(nfe: np.ndarray, log_odds: np.ndarray, places: np.ndarray, least: float) -> tuple[float, float]:
    """(mean NFE, mean calibrated probability of the image that is returned) of a rule.

    Args:
        nfe: (P, T, Q) of each place.
        log_odds: (P, T, Q).
        places: (T,) where each attempt ends.
        least: log-odds from which an image is accepted.
    """
    attempts, spent, returned = len(places), [], []
    for first in range(attempts):
        order = np.roll(np.arange(attempts), -first)
        odds, cost = log_odds[:, order, places], nfe[:, order, places]
        accepted = odds >= least
        accepted[:, -1] = True  # there is no further attempt
        last = accepted.argmax(1)
        made = np.arange(attempts) <= last[:, None]
        spent.append(np.where(made, cost, 0.0).sum(1).mean())
        best = np.where(made, odds, -np.inf).max(1)
        returned.append((1 / (1 + np.exp(-best))).mean())
    return float(np.mean(spent)), float(np.mean(returned))


def frontier_of(rules: Sequence[Rule]) -> list[Rule]:
    """The rules that are best at some cost per NFE, by increasing NFE: the upper convex hull of all.

    >>> made = [Rule(None, 0, 0.0, nfe, probability) for nfe, probability in ((2, .5), (3, .6), (4, .9), (5, .8))]
    >>> [rule.nfe for rule in frontier_of(made)]
    [2, 4]
    """
    hull: list[Rule] = []
    for rule in sorted(rules, key=lambda rule: (rule.nfe, -_of(rule))):
        if hull and _of(rule) <= _of(hull[-1]):
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], rule):
            hull.pop()
        if hull and rule.nfe - hull[-1].nfe < 1e-9:
            hull[-1] = rule
        else:
            hull.append(rule)
    return hull


def costs_of(frontier: Sequence[Rule]) -> list[float]:
    """For each rule of a frontier a cost per NFE at which it is the best: the middle of its range.

    The most expensive rule is best from 0, the cheapest at any cost above its range's lower end; half as much more is
    taken for it.
    """
    slopes = [_slope(one, other) for one, other in zip(frontier, frontier[1:], strict=False)]
    if not slopes:
        return [0.0]
    above = [1.5 * slopes[0], *slopes]
    below = [*slopes, 0.0]
    return [(low + high) / 2 for low, high in zip(below, above, strict=True)]


def _of(rule: Rule) -> float:
    return rule.probability or 0.0


def _slope(one: Rule, other: Rule) -> float:
    return (_of(other) - _of(one)) / max(other.nfe - one.nfe, 1e-9)

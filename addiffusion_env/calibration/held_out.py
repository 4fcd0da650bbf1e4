"""Measures rules on the attempts that they are chosen from: calibrators judge prompts that they were not fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from addiffusion_env.scorers.utility import Calibrator, Utility
from addiffusion_env.tabular.fit_calibrator import fit_calibrator
from addiffusion_env.tabular.mdp import TabularMDP, Transitions
from addiffusion_env.tabular.rules import RuleOutcomes, play_rule, rules_of, thresholds_of
from addiffusion_env.tabular.table import NUMBERS, VECTORS, AttemptTable

FOLDS = 4
"""Parts of the prompts; each is judged by a calibrator that was fitted to the others."""
PROMPTS_PER_DIRECTION = 4
MOST_DIRECTIONS = 64


def fit(table: AttemptTable, rows: Sequence[int] | np.ndarray | None = None) -> Calibrator:
    """Fits a calibrator to some rows (all by default), as :func:`.fit_calibrator`; verdicts are not read."""
    chosen = table if rows is None else table.rows(rows)
    prompts = len(set(chosen.prompt_ids))
    directions = min(MOST_DIRECTIONS, prompts // PROMPTS_PER_DIRECTION, table.clip_text.shape[1])
    # One scale of scores for all prompts: a scale of each, as for training on more prompts, would be fitted to noise.
    return fit_calibrator(chosen, directions=directions, absolute=True)


@dataclass(frozen=True, eq=False)
class HeldOut(Utility):
    """Log-odds of the images of one table, of each prompt by a calibrator that was fitted to other prompts.

    Attributes:
        calibrators: one for each fold.
        fold: (P,) index of the calibrator of each image of the table.
    """

    calibrators: Sequence[Calibrator] = ()
    fold: np.ndarray = field(default_factory=lambda: np.zeros(0, int))

    @classmethod
    def fitted(cls, table: AttemptTable) -> HeldOut:
        """Fits the calibrators; the images of a prompt share a fold."""
        fold = np.unique(table.prompt_ids, return_inverse=True)[1] % FOLDS
        return cls(calibrators=[fit(table, np.flatnonzero(fold != held)) for held in range(FOLDS)], fold=fold)

    def __call__(
        self, preference: np.ndarray, clip_score: np.ndarray, clip_text: np.ndarray, step: np.ndarray | int = 0
    ) -> np.ndarray:
        """See :class:`.Utility`; the rows are those of the table."""
        at = np.broadcast_to(step, np.shape(preference))
        found = np.zeros(np.shape(preference))
        for held, calibrator in enumerate(self.calibrators):
            rows = self.fold == held
            found[rows] = calibrator(preference[rows], clip_score[rows], clip_text[rows], at[rows])
        return found


def measured_rules(table: AttemptTable, transitions: Transitions) -> list[RuleOutcomes]:
    """Every rule on a table whose attempts all begin before the first evaluation.

    Attempts are exchangeable, so each rule is played with every one of them as the first.

    Args:
        table: P images, T attempts each.
        transitions: of its process.
    """
    utility, every = HeldOut.fitted(table), every_order(table)
    utility = replace(utility, fold=np.tile(utility.fold, table.attempts))
    mdp = TabularMDP(every, transitions, 1.0, 0.0, table.attempts - 1, utility)  # rules read no observation
    return [play_rule(mdp, rule) for rule in rules_of(mdp, thresholds_of(mdp))]


def every_order(table: AttemptTable) -> AttemptTable:
    """(T * P images) the table with each of its T attempts as the first, without embeddings of images."""
    turns, blank = range(table.attempts), np.zeros((*table.nfe.shape, 0), np.float32)
    vectors: dict[str, Any] = {name: blank for name in VECTORS}
    numbers: dict[str, Any] = {
        name: np.concatenate([np.roll(getattr(table, name), -turn, 1) for turn in turns]) for name in NUMBERS
    }
    return replace(replace(table, **vectors).rows(np.tile(np.arange(len(table)), table.attempts)), **numbers)

"""Rules without learning, for lanes and for tables: exit early, check the finished image, attempt it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from addiffusion_env.engine.lane import Lane
from addiffusion_env.engine.process import Action
from addiffusion_env.scorers.utility import Utility
from addiffusion_env.settings import Ge, Settings


@dataclass(frozen=True)
class Rule(Settings):
    """Attempts until one is good enough; the finished image of the highest utility is returned.

    Attributes:
        threshold: utility from which a finished image is accepted; ``inf`` is best-of-n.
        attempts: most attempts, of which the last one's image ends the episode.
        early: how many of the first attempts exit early.
        exit_step: step of the schedule from which those exit early; 0 is before the first evaluation.
        abandon: utility of a preview below which an attempt is abandoned; ``-inf`` reads no preview.
    """

    section: ClassVar[str] = "rules"

    threshold: float = np.inf
    attempts: Annotated[int, Ge(1)] = 1
    early: Annotated[int, Ge(0)] = 0
    exit_step: Annotated[int, Ge(0)] = 0
    abandon: float = -np.inf

    def actions(self, step: np.ndarray, attempt: np.ndarray, finished: np.ndarray, value: np.ndarray) -> np.ndarray:
        """(B,) actions; *refine* may be illegal at a preview.

        Args:
            step: (B,) steps of the schedule that are done.
            attempt: (B,) number of the current attempt, from 0.
            finished: (B,) bool, whether the image is finished.
            value: (B,) utility of the finished image or preview; NaN where there is none.
        """
        exits = ~finished & (step >= self.exit_step) & (attempt < self.early)
        wrong = np.where(finished, value < self.threshold, ~exits & (value < self.abandon))
        again = wrong & (attempt + 1 < self.attempts)
        return np.where(again, Action.REFINE, np.where(exits | finished, Action.STOP, Action.CONTINUE))

    def decide(self, lanes: Sequence[Lane], utility: Utility) -> list[int]:
        """An action for each lane at a decision; ``utility`` ranks its images."""
        step, attempt = (np.array([getattr(lane, name) for lane in lanes]) for name in ("step", "refinements"))
        finished = np.array([lane.shown is not None for lane in lanes], dtype=bool)
        seen = [lane.scores if lane.shown is None else lane.shown.scores for lane in lanes]
        at = [lane.preview_step for lane in lanes]
        value = [
            np.nan if scores is None else utility.at(scores, place) for scores, place in zip(seen, at, strict=True)
        ]
        return self.actions(step, attempt, finished, np.array(value)).tolist()

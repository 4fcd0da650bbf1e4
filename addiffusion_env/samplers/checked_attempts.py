"""Rules without learning: exit early, score the finished image, and attempt it again while it scores too low."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import numpy as np

from addiffusion_env.engine.lane import Decide, Lane
from addiffusion_env.engine.process import REFINE_PRESETS, Action, ProcessConfig
from addiffusion_env.errors import ConfigError
from addiffusion_env.samplers.base import BaseSampler, require_at_least
from addiffusion_env.scorers.utility import Utility
from addiffusion_env.settings import Ge, Settings


@dataclass(frozen=True)
class CheckedAttempts(BaseSampler):
    """Attempts of one image until the utility of one reaches a threshold; the attempt of the highest is kept.

    The first attempts may exit early: an image that is accepted then costs less than a whole schedule, and one that is
    rejected is drawn again from fresh noise, with all steps. The rule reads finished images only, so no preview is
    decoded. It runs on the process of checked attempts (``check_finished``, preset ``resample_keep_best``) with the
    schedule, solver and guidance interval of the base process.

    Attributes:
        threshold: an image of at least this utility is accepted; in standard deviations of preference, or of whatever
            ``utility`` returns.
        exit_at: share of the schedule, in (0, 1], after which an attempt exits early; 1 is no early exit.
        attempts: maximum number of attempts; 1 checks nothing and needs no scorer.
        early: how many of the first attempts exit early.
        utility: what images are accepted and ranked by.
    """

    threshold: float = 0.0
    exit_at: float = 0.6
    attempts: int = 3
    early: int = 1
    utility: Utility = field(default_factory=Utility)

    usage: ClassVar[str] = "checked_attempts:THRESHOLD[,EXIT_AT[,ATTEMPTS[,EARLY]]]"
    example: ClassVar[tuple[str, str]] = ("emoji", "checked_attempts:0.5,0.5,2")

    def __post_init__(self) -> None:
        require_at_least("checked_attempts", "ATTEMPTS", self.attempts, 1)
        require_at_least("checked_attempts", "EARLY", self.early, 0)
        require_at_least("checked_attempts", "THRESHOLD", self.threshold, float("-inf"))  # refuses NaN
        if not 0 < self.exit_at <= 1:
            raise ConfigError(
                f"checked_attempts: EXIT_AT must be in (0, 1], got {self.exit_at:g}",
                "0.6 exits after 60 % of the steps, 1 takes all of them",
            )

    @property
    def name(self) -> str:
        """``checked_attempts:0.5,0.6,3,1``: with all its values."""
        return f"checked_attempts:{self.threshold:g},{self.exit_at:g},{self.attempts},{self.early}"

    @property
    def constant(self) -> bool:  # type: ignore[override]
        """A single attempt spends the same on every prompt."""
        return self.attempts == 1

    @property
    def selects_by(self) -> tuple[str, ...]:  # type: ignore[override]
        """The scorers of its utility; none with a single attempt."""
        return self.utility.parts if self.attempts > 1 else ()

    @property
    def attempt_counts(self) -> tuple[int, int]:  # type: ignore[override]
        """A single one where the first image is accepted."""
        return 1, self.attempts

    def exit_step(self, steps: int) -> int | None:
        """The step of a schedule after which an attempt exits early; ``None`` where that is its end."""
        step = max(1, round(self.exit_at * steps))
        return step if step < steps and self.early else None

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """Checked attempts on the base schedule, with one decision in it, where attempts exit early.

        A schedule of a single step has no place from which an attempt could be abandoned: it is taken once.
        """
        step = self.exit_step(base.length) or base.length - 1
        checked = self.attempts > 1 and base.length > 1
        refine = replace(
            REFINE_PRESETS["resample_keep_best"], return_to=step, limit=self.attempts - 1, utility=self.utility
        )
        return replace(
            base,
            decide_every=1,
            decide_at=(step,) if step else None,
            check_finished=checked,
            refine=refine if checked else REFINE_PRESETS["off"],
        )

    def decide(self, requests: Sequence[Decide]) -> list[int]:
        """See :class:`.Rule`; the only decision within the schedule is the early exit."""
        rule = Rule(self.threshold, self.attempts, self.early if self.exit_at < 1 else 0, exit_step=1)
        return rule.decide([request.lane for request in requests], self.utility)


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
            np.nan if scores is None else scores.utility(utility, place) for scores, place in zip(seen, at, strict=True)
        ]
        return self.actions(step, attempt, finished, np.array(value)).tolist()

"""Training budget and learning-rate schedule of a stage."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch


class Tick(NamedTuple):
    """One optimiser step.

    Attributes:
        step: step number, from 1.
        progress: share of the budget spent before this step, in [0, 1).
    """

    step: int
    progress: float


def rate_factor(progress: float, warm: float, tail: float) -> float:
    """The learning rate at ``progress``, relative to its peak: linear warm-up, constant, half a cosine; at least 0.01.

    Args:
        progress: share of the budget spent, in [0, 1].
        warm: share spent warming up.
        tail: share spent on the cosine at the end.

    >>> [round(rate_factor(progress, 0.02, 0.5), 2) for progress in (0, 0.01, 0.3, 0.75, 1)]
    [0.01, 0.5, 1.0, 0.5, 0.01]
    """
    factor = 1.0
    if progress < warm:
        factor = progress / warm
    elif progress > 1 - tail:
        factor = 0.5 * (1 + math.cos(math.pi * (progress - 1 + tail) / tail))
    return max(factor, 0.01)


class StepBudget:
    """Iterates over the steps of a budget and sets the optimiser's rate before each.

    Args:
        optimizer: the optimiser whose learning rate is set.
        lr: the peak learning rate.
        seconds: budget of wall-clock time, counted from the first step; or
        steps: budget of steps.
        warm: see :func:`rate_factor`.
        tail: see :func:`rate_factor`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        lr: float,
        seconds: float | None = None,
        steps: int | None = None,
        warm: float = 0.02,
        tail: float = 0.5,
    ) -> None:
        self.optimizer, self.lr = optimizer, lr
        self.seconds, self.steps = seconds, steps
        self.warm, self.tail = warm, tail

    def __iter__(self) -> Iterator[Tick]:
        start, step = time.monotonic(), 0
        while (progress := self._progress(step, time.monotonic() - start)) < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * rate_factor(progress, self.warm, self.tail)
            step += 1
            yield Tick(step, progress)

    def _progress(self, done: int, elapsed: float) -> float:
        if self.steps is not None:
            return done / self.steps
        assert self.seconds is not None
        return elapsed / self.seconds

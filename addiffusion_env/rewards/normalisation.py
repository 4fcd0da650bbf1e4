"""Pooled running statistics with a floor.

Gains are divided by one standard deviation pooled over all prompts, never by a per-prompt difference, which can
vanish and make a reward explode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Moments:
    """Running mean and variance (Chan et al.'s parallel update, as in SB3's RunningMeanStd)."""

    count: float = 0.0
    mean: float = 0.0
    var: float = 1.0

    def update(self, values: np.ndarray) -> None:
        """Adds finite values."""
        values = values[np.isfinite(values)].astype(np.float64)
        if not len(values):
            return
        total = self.count + len(values)
        delta = float(values.mean()) - self.mean
        spread = self.var * self.count + float(values.var()) * len(values) + delta**2 * self.count * len(values) / total
        self.mean += delta * len(values) / total
        self.var = spread / total
        self.count = total


@dataclass
class PooledScale:
    """Standard deviations by name, pooled over all lanes and prompts.

    Attributes:
        floor: least standard deviation.
        initial: used until ``warmup`` values have been seen, and throughout when ``training`` is off from the start.
        training: whether :meth:`update` learns.
        moments: the statistics.
    """

    floor: float = 0.05
    initial: float = 1.0
    warmup: int = 256
    training: bool = False
    moments: dict[str, Moments] = field(default_factory=dict)

    def update(self, name: str, values: np.ndarray) -> None:
        """Adds values of a quantity, in training."""
        if self.training:
            self.moments.setdefault(name, Moments()).update(values)

    def std(self, name: str) -> float:
        """The standard deviation of a quantity, at least ``floor``."""
        moments = self.moments.get(name)
        if moments is None or moments.count < self.warmup:
            return self.initial
        return max(self.floor, float(np.sqrt(moments.var)))

    def state_dict(self) -> dict[str, list[float]]:
        """Plain numbers: name -> [count, mean, variance]."""
        return {name: [m.count, m.mean, m.var] for name, m in self.moments.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Restores :meth:`state_dict`."""
        self.moments = {name: Moments(*values) for name, values in state.items()}

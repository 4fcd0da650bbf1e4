"""A pipeline of one's own for each lane, one after another in this process."""

from __future__ import annotations

import numpy as np

from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_lab.bench.bed import Arm, Bed, Done

TIMED_LANES = 4
"""Lanes that are timed in this process: they run one after another, so that more of them cost as much each."""


class Independent(Arm):
    """Scalar environments, each evaluating its one lane; ``decide_every`` evaluations between looks."""

    def __init__(self, bed: Bed, decide_every: int) -> None:
        self.bed, self.decide_every = bed, decide_every
        self.name = f"independent, one a lane, look every {decide_every}"
        self.envs = [
            AdDiffusionEnv(**bed.environment(decide_every=decide_every)) for _ in range(min(bed.lanes, TIMED_LANES))
        ]

    def round(self) -> Done:
        """One episode a lane, always continued."""
        for index, env in enumerate(self.envs):
            env.reset(seed=index)
            over = False
            while not over:
                _, _, over, _, _ = env.step(np.int64(0))
        return Done(len(self.envs) * self.bed.steps, len(self.envs))


def looking_always(bed: Bed) -> Independent:
    """With a look after every evaluation."""
    return Independent(bed, 1)


def looking_seldom(bed: Bed) -> Independent:
    """With a look every ``bed.look_every`` evaluations."""
    return Independent(bed, bed.look_every)

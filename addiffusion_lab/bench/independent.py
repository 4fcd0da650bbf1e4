"""A pipeline of one's own for each lane, one after another in this process."""

from __future__ import annotations

import numpy as np

from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_lab.bench.setup import Arm, BenchmarkSetup, Done

TIMED_LANES = 4
"""Lanes that are timed in this process: they run one after another, so that more of them cost as much each."""


class Independent(Arm):
    """Scalar environments, each evaluating its one lane; ``decide_every`` evaluations between looks."""

    def __init__(self, setup: BenchmarkSetup, decide_every: int) -> None:
        self.setup, self.decide_every = setup, decide_every
        self.name = f"independent, one a lane, look every {decide_every}"
        self.envs = [
            AdDiffusionEnv(**setup.environment(decide_every=decide_every)) for _ in range(min(setup.lanes, TIMED_LANES))
        ]

    def round(self) -> Done:
        """One episode a lane, always continued."""
        for index, env in enumerate(self.envs):
            env.reset(seed=index)
            over = False
            while not over:
                _, _, over, _, _ = env.step(np.int64(0))
        return Done(len(self.envs) * self.setup.steps, len(self.envs))


def looking_always(setup: BenchmarkSetup) -> Independent:
    """With a look after every evaluation."""
    return Independent(setup, 1)


def looking_seldom(setup: BenchmarkSetup) -> Independent:
    """With a look every ``setup.preview_every`` evaluations."""
    return Independent(setup, setup.preview_every)

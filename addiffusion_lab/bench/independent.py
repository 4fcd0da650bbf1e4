"""One independent environment per lane, run one after another in this process."""

from __future__ import annotations

import numpy as np

from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_lab.bench.setup import Arm, BenchmarkSetup, RoundResult

TIMED_LANES = 4
"""Maximum number of lanes to time: they run one after another, so that the cost per lane is constant."""


class Independent(Arm):
    """Scalar environments, each evaluating one lane, with ``decide_every`` evaluations between previews."""

    def __init__(self, setup: BenchmarkSetup, decide_every: int) -> None:
        self.setup, self.decide_every = setup, decide_every
        self.name = f"independent, one per lane, preview every {decide_every}"
        self.envs = [
            AdDiffusionEnv(**setup.environment(decide_every=decide_every)) for _ in range(min(setup.lanes, TIMED_LANES))
        ]

    def round(self) -> RoundResult:
        """Plays one episode per lane, always continuing."""
        for index, env in enumerate(self.envs):
            env.reset(seed=index)
            over = False
            while not over:
                _, _, over, _, _ = env.step(np.int64(0))
        return RoundResult(len(self.envs) * self.setup.steps, len(self.envs))


def preview_always(setup: BenchmarkSetup) -> Independent:
    """With a preview after every evaluation."""
    return Independent(setup, 1)


def preview_sometimes(setup: BenchmarkSetup) -> Independent:
    """With a preview every ``setup.preview_every`` evaluations."""
    return Independent(setup, setup.preview_every)

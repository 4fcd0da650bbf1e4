"""The vector environment that training uses, with a preview after every evaluation."""

from __future__ import annotations

import numpy as np

from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv
from addiffusion_lab.bench.setup import Arm, BenchmarkSetup, RoundResult


class VectorEnvironment(Arm):
    """``AdDiffusionVectorEnv.step``: evaluation, preview, reward, observation, final decode, next episode."""

    name = "vector env, preview every 1"

    def __init__(self, setup: BenchmarkSetup) -> None:
        self.setup = setup
        self.env = AdDiffusionVectorEnv(setup.lanes, **setup.environment())
        self.env.reset(seed=0)

    def round(self) -> RoundResult:
        """Plays one episode per lane, always continuing."""
        images = 0
        for _ in range(self.setup.steps):
            images += int(self.env.step(np.zeros(self.setup.lanes, dtype=int))[2].sum())
        return RoundResult(self.setup.lanes * self.setup.steps, images)

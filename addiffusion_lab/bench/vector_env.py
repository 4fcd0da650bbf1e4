"""The vector environment: what training runs on, looked at after every evaluation."""

from __future__ import annotations

import numpy as np

from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv
from addiffusion_lab.bench.setup import Arm, BenchmarkSetup, Done


class VectorEnvironment(Arm):
    """``AdDiffusionVectorEnv.step``: evaluation, look, reward, observation, final decode, next episode."""

    name = "vector env, look every 1"

    def __init__(self, setup: BenchmarkSetup) -> None:
        self.setup = setup
        self.env = AdDiffusionVectorEnv(setup.lanes, **setup.environment())
        self.env.reset(seed=0)

    def round(self) -> Done:
        """One episode a lane, always continued."""
        images = 0
        for _ in range(self.setup.steps):
            images += int(self.env.step(np.zeros(self.setup.lanes, dtype=int))[2].sum())
        return Done(self.setup.lanes * self.setup.steps, images)

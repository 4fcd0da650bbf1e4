"""The vector environment: what training runs on, looked at after every evaluation."""

from __future__ import annotations

import numpy as np

from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv
from addiffusion_lab.bench.bed import Arm, Bed, Done


class VectorEnvironment(Arm):
    """``AdDiffusionVectorEnv.step``: evaluation, look, reward, observation, final decode, next episode."""

    name = "vector env, look every 1"

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.env = AdDiffusionVectorEnv(bed.lanes, **bed.environment())
        self.env.reset(seed=0)

    def round(self) -> Done:
        """One episode a lane, always continued."""
        images = 0
        for _ in range(self.bed.steps):
            images += int(self.env.step(np.zeros(self.bed.lanes, dtype=int))[2].sum())
        return Done(self.bed.lanes * self.bed.steps, images)

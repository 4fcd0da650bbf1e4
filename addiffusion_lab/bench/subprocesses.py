"""One process per lane, as in Stable-Baselines3's parallel environments, each with a copy of the weights."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import SubprocVecEnv

from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_lab.bench.setup import Arm, BenchmarkSetup, RoundResult


def make_env(settings: dict[str, Any]) -> AdDiffusionEnv:
    """An environment in its own process, on one thread, since one process per lane shares the machine."""
    torch.set_num_threads(1)
    return AdDiffusionEnv(**settings)


class Subprocesses(Arm):
    """Stable-Baselines3's ``SubprocVecEnv`` over scalar environments: one process and copy of the weights per lane."""

    name = "SubprocVecEnv, one per lane, preview every 1"
    own_calls = False

    def __init__(self, setup: BenchmarkSetup) -> None:
        assert setup.settings is not None
        self.setup = setup
        # More than two per core only wait for one another, and each takes about a gigabyte.
        self.lanes = min(setup.lanes, 2 * (os.cpu_count() or 1))
        self.env = SubprocVecEnv([partial(make_env, dict(setup.settings)) for _ in range(self.lanes)])
        self.pids = tuple(process.pid for process in self.env.processes)
        self.env.reset()

    def round(self) -> RoundResult:
        """Plays one episode per lane, always continuing."""
        images = 0
        for _ in range(self.setup.steps):
            images += int(self.env.step(np.zeros(self.lanes, dtype=np.int64))[2].sum())
        return RoundResult(self.lanes * self.setup.steps, images)

    def close(self) -> None:
        """Terminates the processes."""
        self.env.close()

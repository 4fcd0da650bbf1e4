"""The tabular environment for SB3: the episodes of the environment from a table, thousands of decisions per second."""

from __future__ import annotations

from typing import Any

import numpy as np

from addiffusion_env.envs.sb3_env import SharedVecEnv
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.envs.slot import ActionSpace
from addiffusion_env.rewards import failures, make_reward, reward_error
from addiffusion_env.tabular.mdp import States, TabularMDP


class TabularVecEnv(SharedVecEnv):
    """A table as SB3's :class:`~stable_baselines3.common.vec_env.VecEnv`; each episode is an image drawn from it.

    The recorded attempts of an image are exchangeable, so each episode visits them in a random order. An illegal action
    is replaced by *continue*, as in the environment, or by *stop* where *continue* is illegal.

    Args:
        mdp: the decision process on a table.
        settings: settings of the environment: reward, costs per NFE, observation keys.
        num_envs: number of lanes.
        seed: seed of the draws of images, orders and costs per NFE.
    """

    def __init__(self, mdp: TabularMDP, settings: EnvSettings, num_envs: int, seed: int = 0) -> None:
        self.mdp, self.table, self.settings = mdp, mdp.table, settings
        self.observer = mdp.table.observer(settings.keys())
        self.reward = make_reward(settings.reward)
        self.costs_per_nfe = settings.cost_range()
        self.render_mode = None
        self._rng = np.random.default_rng([seed, 911])
        self._actions = np.zeros(num_envs, dtype=np.int64)
        self.states = self._draw(num_envs)
        super().__init__(num_envs, self.observer.space, ActionSpace())

    def _draw(self, size: int) -> States:
        row = self._rng.integers(len(self.table), size=size)
        order = np.argsort(self._rng.random((size, self.table.attempts)), axis=1)
        return States.start(row, order, self._rng.uniform(*self.costs_per_nfe, size=size))

    def reset(self) -> dict[str, np.ndarray]:  # type: ignore[override]
        """Begins an episode in every lane."""
        self.states = self._draw(self.num_envs)
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self._observe(self.states)

    def step_async(self, actions: np.ndarray) -> None:
        """Stores the actions; the work is done in :meth:`step_wait`."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:  # type: ignore[override]
        """Takes one action in every lane; a lane whose episode ends begins its next one."""
        states = self.states
        step = self.mdp.step(states, self.mdp.legalised(states, self._actions))
        reward, parts = self.reward(self.mdp.transition(states, step, self._actions))
        for failed, (name, value) in failures(reward, parts).items():
            raise reward_error(name, value, f"lane {failed}", self.table.prompts[states.row[failed]])
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        done = np.flatnonzero(step.ended)
        if len(done):
            last = self._observe(step.states)
            nfe, refinements = self.mdp.nfe(step.states), step.states.attempt
            for lane in done:
                attempt, place = step.image[lane]
                infos[lane] = {
                    "terminal_observation": {key: value[lane] for key, value in last.items()},
                    "TimeLimit.truncated": False,
                    "nfe": float(nfe[lane]),
                    "cost_per_nfe": float(states.cost_per_nfe[lane]),
                    "refinements": int(refinements[lane]),
                    "preference": float(self.table.preference[states.row[lane], attempt, place]),
                }
        self.states = step.states.merged(self._draw(self.num_envs), step.ended)
        return self._observe(self.states), reward.astype(np.float32), step.ended, infos

    def _observe(self, states: States) -> dict[str, np.ndarray]:
        return self.observer.observe(self.mdp.frame(states))

    def action_masks(self) -> np.ndarray:
        """(num_envs, 3) bool: legal actions of each lane."""
        return self.mdp.masks(self.states)

    def close(self) -> None:
        """Nothing to release."""

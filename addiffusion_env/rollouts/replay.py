"""The environment played from a stop-and-retry table, for SB3: the same episodes, thousands of decisions a second."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from addiffusion_env.engine.process import Action
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import ConfigError
from addiffusion_env.rewards.composite import failures, make_reward, reward_error
from addiffusion_env.rollouts.table import TryTable
from addiffusion_env.rollouts.walk import Walk, Walkers


class ReplayVecEnv(VecEnv):
    """SB3's :class:`VecEnv` over a table; every lane an episode of a picture drawn from it.

    The recorded tries of a picture are exchangeable draws, so each episode meets them in an order of its own.
    Illegal actions continue instead, as in the environment, or accept where nothing can be continued.

    Args:
        table: what was recorded.
        settings: of the environment: reward, prices, observation keys.
        walk: the decision process on the table.
        num_envs: lanes.
        seed: of pictures, orders and prices.
    """

    def __init__(self, table: TryTable, settings: EnvSettings, walk: Walk, num_envs: int, seed: int = 0) -> None:
        if settings.reference_steps is not None:
            raise ConfigError("a table has no reference schedule", "set reference_steps=null, or train without replay")
        self.table, self.settings, self.walk = table, settings, walk
        self.observer = table.observer(settings.keys())
        self.reward = make_reward(settings.reward)
        self.prices = settings.price_range()
        self.render_mode = None
        self._rng = np.random.default_rng([seed, 911])
        self._actions = np.zeros(num_envs, dtype=np.int64)
        self.walkers = self._fresh(num_envs)
        super().__init__(num_envs, self.observer.space, spaces.Discrete(3))

    def _fresh(self, size: int) -> Walkers:
        row = self._rng.integers(len(self.table), size=size)
        order = np.argsort(self._rng.random((size, self.table.tries)), axis=1)
        return Walkers.start(row, order, self._rng.uniform(*self.prices, size=size))

    def reset(self) -> dict[str, np.ndarray]:  # type: ignore[override]
        """Begins an episode in every lane."""
        self.walkers = self._fresh(self.num_envs)
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self._observe(self.walkers)

    def step_async(self, actions: np.ndarray) -> None:
        """Remembers the actions; the work is done in :meth:`step_wait`."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:  # type: ignore[override]
        """Takes one action in every lane; ended lanes begin anew."""
        walkers, masks = self.walkers, self.walk.masks(self.walkers)
        legal = masks[np.arange(self.num_envs), self._actions]
        instead = np.where(masks[:, Action.CONTINUE], Action.CONTINUE, Action.STOP)
        moved = self.walk.step(walkers, np.where(legal, self._actions, instead))
        reward, parts = self.reward(self.walk.transition(walkers, moved, self._actions))
        for failed, (name, value) in failures(reward, parts).items():
            raise reward_error(name, value, f"lane {failed}", self.table.prompts[walkers.row[failed]])
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        done = np.flatnonzero(moved.ended)
        if len(done):
            last = self._observe(moved.walkers)
            nfe, number = self.walk.nfe(moved.walkers), moved.walkers.number
            for lane in done:
                tried, place = moved.picture[lane]
                infos[lane] = {
                    "terminal_observation": {key: value[lane] for key, value in last.items()},
                    "TimeLimit.truncated": False,
                    "nfe": float(nfe[lane]),
                    "price": float(walkers.price[lane]),
                    "refinements": int(number[lane]),
                    "preference": float(self.table.preference[walkers.row[lane], tried, place]),
                }
        self.walkers = moved.walkers.merged(self._fresh(self.num_envs), moved.ended)
        return self._observe(self.walkers), reward.astype(np.float32), moved.ended, infos

    def _observe(self, walkers: Walkers) -> dict[str, np.ndarray]:
        return self.observer.observe(self.walk.frame(walkers))

    def action_masks(self) -> np.ndarray:
        """(num_envs, 3) bool: legal actions of each lane."""
        return self.walk.masks(self.walkers)

    # ------------------------------------------------------------------ SB3's plumbing
    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The lanes share one environment; its attribute is repeated."""
        return [getattr(self, attr_name) for _ in self._indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets the attribute on the shared environment."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Calls a method; ``action_masks`` gives each lane its row."""
        result = getattr(self, method_name)(*args, **kwargs)
        return [result[index] if method_name == "action_masks" else result for index in self._indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Lanes are never wrapped one by one."""
        return [False for _ in self._indices(indices)]

    def _indices(self, indices: int | Iterable[int] | None) -> Sequence[int]:
        return list(self._get_indices(indices))

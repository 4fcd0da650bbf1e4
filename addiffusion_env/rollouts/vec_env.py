"""SB3's vectorised environment over the vector env: one model for all lanes, one denoiser call a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv


class AdDiffusionVecEnv(VecEnv):
    """``num_envs`` lanes as SB3 wants them: same-step reset, ``terminal_observation``, ``TimeLimit.truncated``.

    Args:
        num_envs: number of lanes.
        seed: lane i is seeded with ``seed + i`` at the first reset.
        **settings: the fields of :class:`addiffusion_env.envs.settings.EnvSettings`.
    """

    def __init__(self, num_envs: int, seed: int = 0, **settings: Any) -> None:
        self.lanes = AdDiffusionVectorEnv(num_envs, **settings)
        self.render_mode = self.lanes.render_mode
        super().__init__(num_envs, self.lanes.single_observation_space, self.lanes.single_action_space)
        self._first_seed: int | None = seed
        self._actions = np.zeros(num_envs, dtype=np.int64)

    def reset(self) -> dict[str, np.ndarray]:  # type: ignore[override]
        """Begins an episode in every lane; the first time from the seed, later going on."""
        seeds = [seed for seed in self._seeds if seed is not None]
        seed = seeds[0] if seeds else self._first_seed
        observation, infos = self.lanes.reset(seed=seed)
        self.reset_infos = self._rows(infos)
        self._first_seed = None
        self._reset_seeds()
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Remembers the actions; the work is done in :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:  # type: ignore[override]
        """Takes one action in every lane."""
        observation, reward, terminated, truncated, infos = self.lanes.step(self._actions)
        rows = self._rows(infos)
        done = terminated | truncated
        for index in np.flatnonzero(done):
            last = dict(infos["final_info"]) if "final_info" in infos else {}
            row = self._row(last, int(index))
            row["terminal_observation"] = infos["final_obs"][index]
            row["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
            self.reset_infos[index] = rows[index]  # the new episode's, as SB3's DummyVecEnv keeps it
            rows[index] = row
        return observation, reward.astype(np.float32), done, rows

    def _rows(self, infos: dict[str, Any]) -> list[dict[str, Any]]:
        own = {key: value for key, value in infos.items() if key.lstrip("_") not in ("final_obs", "final_info")}
        return [self._row(own, index) for index in range(self.num_envs)]

    def _row(self, infos: dict[str, Any], index: int) -> dict[str, Any]:
        """One lane's info out of Gymnasium's dict of arrays with masks."""
        row: dict[str, Any] = {}
        for key, value in infos.items():
            if key.startswith("_") or not infos.get(f"_{key}", np.zeros(self.num_envs, bool))[index]:
                continue
            entry = self._row(value, index) if isinstance(value, dict) else value[index]
            row[key] = entry.item() if isinstance(entry, np.generic) else entry
        return row

    def action_masks(self) -> np.ndarray:
        """(num_envs, 3) bool: legal actions of each lane."""
        return self.lanes.action_masks()

    def state_dict(self) -> dict[str, Any]:
        """All lanes, exactly: see :meth:`addiffusion_env.envs.episodes.Episodes.state_dict`."""
        return self.lanes.episodes.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.lanes.episodes.load_state_dict(state)

    def set_training(self, training: bool) -> None:
        """Whether the reward's pooled statistics learn."""
        self.lanes.episodes.reward.scale.training = training

    # ------------------------------------------------------------------ SB3's plumbing
    def close(self) -> None:
        """Nothing to release: the weights are shared by the process."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The lanes share one environment; its attribute is repeated."""
        value = getattr(self.lanes, attr_name)
        return [value for _ in self._indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets the attribute on the shared environment."""
        setattr(self.lanes, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Calls a method: ``action_masks`` gives each lane its row, others are called once and repeated."""
        rows = self._indices(indices)
        result = getattr(self.lanes, method_name)(*args, **kwargs)
        return [result[index] for index in rows] if method_name == "action_masks" else [result for _ in rows]

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Lanes are never wrapped one by one."""
        return [False for _ in self._indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One frame a lane."""
        return list(self.lanes.render() or [])

    def _indices(self, indices: int | Iterable[int] | None) -> list[int]:
        return list(self._get_indices(indices))

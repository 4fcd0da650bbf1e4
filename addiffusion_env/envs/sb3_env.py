"""The SB3 vectorised environment: one model for all lanes, one denoiser call per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from addiffusion_env.envs.env import AdDiffusionEnv, Restorable, View
from addiffusion_env.envs.episodes import Episodes
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.envs.slot import ActionSpace, info_of
from addiffusion_env.settings import lane_count, whole_seed


class SharedVecEnv(VecEnv):
    """Base class of SB3 environments whose lanes share one object, so that attributes are common to all lanes."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The object's attribute, repeated for each lane."""
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets the attribute on the object."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Calls a method once; ``action_masks`` returns each lane's row, others the same result for all lanes."""
        result = getattr(self, method_name)(*args, **kwargs)
        by_lane = method_name == "action_masks"
        return [result[index] if by_lane else result for index in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """``False`` for every lane: lanes are never wrapped individually."""
        return [False for _ in self._get_indices(indices)]


class AdDiffusionVecEnv(Restorable, SharedVecEnv):
    """``num_envs`` lanes with SB3's interface: same-step reset, ``terminal_observation``, ``TimeLimit.truncated``.

    Equivalent to SB3's ``DummyVecEnv`` over ``num_envs`` scalar :class:`addiffusion_env.envs.env.AdDiffusionEnv`,
    including infos.

    Args:
        num_envs: number of lanes.
        seed: lane i is seeded with ``seed + i`` at the first reset.
        **settings: the fields of :class:`addiffusion_env.envs.settings.EnvSettings`, with that class's defaults. The
            process of a registered id is ``**ENVIRONMENTS["AdDiffusion-Emoji-v2"]``.
    """

    spec = None

    def __init__(self, num_envs: int, seed: int = 0, **settings: Any) -> None:
        num_envs = lane_count(num_envs)
        self.settings = EnvSettings.of("num_envs", "seed", **settings)
        self.episodes = Episodes(self.settings, num_envs)
        self.render_mode = self.settings.render_mode
        self.view = View(self.episodes, self.render_mode, AdDiffusionEnv.metadata["render_fps"])
        super().__init__(num_envs, self.episodes.observer.space, ActionSpace())
        self._first_seed: int | None = whole_seed(seed)
        self._actions = np.zeros(num_envs, dtype=np.int64)

    def reset(self) -> dict[str, np.ndarray]:  # type: ignore[override]
        """Begins an episode in every lane, with the options of ``set_options``; only the first reset uses the seed."""
        seeds = list(self._seeds)
        if self._first_seed is not None:
            seeds = [self._first_seed + lane if seed is None else seed for lane, seed in enumerate(seeds)]
        begun = self.episodes.begin_all(range(self.num_envs), seeds, self._options)
        self.reset_infos[:] = [info_of(begun, lane) for lane in range(self.num_envs)]
        self._first_seed = None
        self._reset_seeds()
        self._reset_options()
        self.view.reset()
        return self.episodes.observe()

    def step_async(self, actions: np.ndarray) -> None:
        """Stores the actions; the work is done in :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:  # type: ignore[override]
        """Takes one action in every lane."""
        result = self.episodes.step(self._actions)
        done = result.terminated | result.truncated
        infos = [info_of(result.infos, lane) for lane in range(self.num_envs)]
        for lane, info in enumerate(infos):
            self.view.stepped(lane, bool(done[lane]))
            info["TimeLimit.truncated"] = bool(result.truncated[lane])
            if done[lane]:
                info["terminal_observation"] = {key: value[lane].copy() for key, value in result.observation.items()}
        observation = result.observation
        if done.any():
            ended = np.flatnonzero(done).tolist()
            begun = self.episodes.begin_all(ended)
            for row, lane in enumerate(ended):
                self.reset_infos[lane] = info_of(begun, row)
            observation = self.episodes.observe()
        self.view.show()
        return observation, result.reward.astype(np.float32), done, infos

    def action_masks(self) -> np.ndarray:
        """(num_envs, 3) bool: legal actions of each lane."""
        return self.episodes.action_masks()

    # ------------------------------------------------------------------ SB3's interface
    @property
    def lanes(self) -> AdDiffusionVecEnv:
        """The environment shared by the lanes: this one."""
        return self

    def close(self) -> None:
        """Closes the window of mode ``human``; the weights are shared by the process."""
        self.view.close()

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Calls a method: ``action_masks`` and ``render`` return one result per lane, others the same for all."""
        if method_name == "render":  # SB3's render() calls the lanes' method by this name
            frames = list(self.get_images()) or [None] * self.num_envs
            return [frames[index] for index in self._get_indices(indices)]
        return super().env_method(method_name, *args, indices=indices, **kwargs)

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One frame per lane."""
        return [] if self.render_mode in (None, "human") else list(self.view.frames())

"""The vector environment: n lanes on one model, one denoiser call for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from addiffusion_env.envs.episodes import Episodes
from addiffusion_env.envs.settings import RENDER_MODES, EnvSettings
from addiffusion_env.envs.view import View
from addiffusion_env.errors import ConfigError
from addiffusion_env.rewards.base import Transition

Observation = dict[str, np.ndarray]


class AdDiffusionVectorEnv(VectorEnv):
    """``num_envs`` episodes in step; equals as many :class:`AdDiffusionEnv` row by row.

    A lane whose episode ends begins its next one in the same step (``AutoresetMode.SAME_STEP``): the observation
    returned is the new episode's first, the old one's last is in ``info["final_obs"]`` and ``info["final_info"]``.

    Args:
        num_envs: number of lanes.
        **settings: the fields of :class:`addiffusion_env.envs.settings.EnvSettings`.

    Attributes:
        transition: what the last step's reward was made of, see :class:`StepResult`; ``None`` before the first step.
    """

    metadata = {  # noqa: RUF012 - Gymnasium's own convention
        "render_modes": [*RENDER_MODES],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, num_envs: int = 1, **settings: Any) -> None:
        if num_envs < 1:
            raise ConfigError(f"num_envs must be at least 1, got {num_envs}", "use 8")
        self.settings = EnvSettings.of(**settings)
        self.num_envs = num_envs
        self.episodes = Episodes(self.settings, num_envs)
        self.single_observation_space = self.episodes.observer.space
        self.single_action_space = gym.spaces.Discrete(3)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.render_mode = self.settings.render_mode
        self.transition: Transition | None = None
        self.view = View(self.episodes, self.render_mode, int(self.metadata["render_fps"]))

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode in every lane.

        Args:
            seed: lane i is seeded with ``seed + i``, or with ``seed[i]``.
            options: as for the scalar environment; a list value gives each lane its own.

        Raises:
            ConfigError: when a list has not one entry a lane.
        """
        super().reset(seed=seed if isinstance(seed, int) else None)
        infos: dict[str, Any] = {}
        for index, lane_seed in enumerate(self._seeds(seed)):
            infos = self._add_info(infos, self.episodes.begin(index, lane_seed, self._options(options, index)), index)
        self.view.reset()
        return self.episodes.observe(), infos

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            fresh = [slot is None for slot in self.episodes.slots]
            return [int(self.np_random.integers(2**31)) if new else None for new in fresh]
        if isinstance(seed, int | np.integer):
            return [int(seed) + index for index in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ConfigError(
                f"seed has {len(seed)} entries for {self.num_envs} lanes", "give one a lane, or one number"
            )
        return list(seed)

    def _options(self, options: Mapping[str, Any] | None, index: int) -> dict[str, Any]:
        chosen: dict[str, Any] = {}
        for key, value in (options or {}).items():
            if isinstance(value, list | tuple | np.ndarray):
                if len(value) != self.num_envs:
                    raise ConfigError(
                        f"options[{key!r}] has {len(value)} entries for {self.num_envs} lanes", "one a lane"
                    )
                value = value[index]
            chosen[key] = value
        return chosen

    def step(self, actions: np.ndarray) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Takes one action in every lane; see the class for what happens at an episode's end.

        Raises:
            IllegalActionError: for a number that is no action; in strict mode also for a masked one.
        """
        result = self.episodes.step([int(action) for action in actions])
        self.transition = result.transition
        observation = result.observation
        infos: dict[str, Any] = {}
        over = result.terminated | result.truncated
        for index, info in enumerate(result.infos):
            self.view.stepped(index, bool(over[index]))
            if over[index]:
                last = {key: value[index].copy() for key, value in observation.items()}
                infos = self._add_info(infos, {"final_obs": last, "final_info": info}, index)
                info = self.episodes.begin(index)
            infos = self._add_info(infos, info, index)
        if over.any():
            observation = self.episodes.observe()
        self.view.show()
        return observation, result.reward, result.terminated, result.truncated, infos

    def identity(self) -> dict[str, Any]:
        """What makes, scores and pays the pictures, as plain values."""
        return self.episodes.identity()

    def action_masks(self) -> np.ndarray:
        """(num_envs, 3) bool: legal actions of each lane."""
        return self.episodes.action_masks()

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One picture a lane, all of one size, as the scalar environment gives; ``None`` in mode ``human`` or without.

        A lane that has begun its next episode in this step shows that one's start; its film strip is still the old
        one's, whole.
        """
        if self.render_mode in (None, "human"):
            return None
        return tuple(self.view.frames())

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the window of mode ``human``."""
        self.view.close()

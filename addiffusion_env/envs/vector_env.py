"""The vector environment: n lanes on one model, one denoiser call for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from addiffusion_env.envs.env import Restorable, View
from addiffusion_env.envs.episodes import Episodes
from addiffusion_env.envs.settings import RENDER_MODES, EnvSettings
from addiffusion_env.envs.slot import ActionSpace, Columns
from addiffusion_env.errors import ConfigError, EpisodeOverError, unknown
from addiffusion_env.settings import lane_count, whole_seed

Observation = dict[str, np.ndarray]

KEYWORDS = ("num_envs", "autoreset_mode", "max_episode_steps")
"""Keywords of the vector environment in addition to the settings."""


class AdDiffusionVectorEnv(Restorable, VectorEnv):
    """``num_envs`` episodes in lockstep; each row equals a scalar :class:`AdDiffusionEnv`.

    When an episode ends, its lane resets according to Gymnasium's :class:`gymnasium.vector.AutoresetMode`:

    * ``same_step`` (default): the next episode begins in the same step. The returned observation is the first of the
      new episode; the last of the old one is in ``info["final_obs"]`` and ``info["final_info"]``. No step is spent on
      the reset, which matters because episodes are short, often of one to three decisions.
    * ``next_step``, as in Gymnasium's ``SyncVectorEnv``: the next episode begins in the next step, whose action is
      ignored and whose reward is 0. Gymnasium's vector observation wrappers need this mode or ``disabled``.
    * ``disabled``: the lane waits for ``reset(options={"reset_mask": terminated | truncated})``.

    Args:
        num_envs: number of lanes.
        autoreset_mode: one of the three names, or Gymnasium's enum.
        max_episode_steps: truncates an episode after this many decisions, as ``gym.make``'s ``TimeLimit`` does; -1 or
            ``None`` for no limit. ``max_decisions`` is the same, but an episode that terminates there is not truncated.
        **settings: the fields of :class:`addiffusion_env.envs.settings.EnvSettings`. ``render_mode`` may also be
            ``rgb_array_list`` or ``filmstrip_list``: the frames since the last call of ``render``, for each lane.
    """

    metadata = {  # noqa: RUF012 - Gymnasium's own convention
        "render_modes": [*RENDER_MODES, "rgb_array_list", "filmstrip_list"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = "same_step",
        max_episode_steps: int | None = None,
        **settings: Any,
    ) -> None:
        num_envs = lane_count(num_envs)
        self.autoreset_mode = _mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = settings.get("render_mode")
        if self.render_mode in ("rgb_array_list", "filmstrip_list"):
            settings["render_mode"] = self.render_mode.removesuffix("_list")
        self.settings = EnvSettings.of(*KEYWORDS, **settings)
        self._limit = _limit(max_episode_steps)
        if self._limit is not None:
            limit = min(self._limit, self.settings.max_decisions or self._limit)
            self.settings = replace(self.settings, max_decisions=limit)
        self.num_envs = num_envs
        self.episodes = Episodes(self.settings, num_envs)
        self.single_observation_space = self.episodes.observer.space
        self.single_action_space = ActionSpace()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.view = View(self.episodes, self.render_mode, int(self.metadata["render_fps"]))

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode in every lane, or in those of ``reset_mask``.

        Args:
            seed: lane i is seeded with ``seed + i``, or with ``seed[i]``. A lane without a seed continues with its
                next episode; before its first episode it draws a seed.
            options: as for the scalar environment; a list holds one value per lane, or ``None``.
                ``reset_mask``, (num_envs,) bool, resets only these lanes: ``info`` is theirs, observations are all.

        Raises:
            ConfigError: if a list does not have one entry per lane, a seed is not a whole number of 0 or more, or
                ``reset_mask`` is not a mask.
            EpisodeOverError: if ``reset_mask`` leaves out a lane that never had an episode.
        """
        if seed is not None and (isinstance(seed, str) or not isinstance(seed, Sequence | np.ndarray)):
            seed = whole_seed(seed)
        super().reset(seed=seed if isinstance(seed, int) else None)
        given = dict(options or {})
        lanes = self._lanes(given.pop("reset_mask", None))
        seeds = self._seeds(seed)
        chosen = [self._options(given, index) for index in lanes]
        begun = self.episodes.begin_all(lanes, [seeds[index] for index in lanes], chosen)
        self.view.reset(lanes if len(lanes) < self.num_envs else None)
        return self.episodes.observe(), stacked(begun, lanes, self.num_envs)

    def _lanes(self, mask: Any) -> list[int]:
        """Which lanes a ``reset_mask`` resets."""
        if mask is None:
            return list(range(self.num_envs))
        chosen = np.asarray(mask)
        if chosen.shape != (self.num_envs,) or chosen.dtype != bool or not chosen.any():
            raise ConfigError(
                f"options['reset_mask'] must be ({self.num_envs},) bool with at least one True, got {mask!r:.80}",
                "pass terminated | truncated",
            )
        never = [index for index, slot in enumerate(self.episodes.slots) if slot is None and not chosen[index]]
        if never:
            raise EpisodeOverError(f"lane {never[0]} was never reset", "leave reset_mask out of the first reset")
        return [int(index) for index in np.flatnonzero(chosen)]

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if isinstance(seed, int):
            return [seed + index for index in range(self.num_envs)]
        seeds = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise ConfigError(
                f"seed has {len(seeds)} entries for {self.num_envs} lanes", "give one per lane, or a single number"
            )
        return [
            int(self.np_random.integers(2**31)) if given is None and slot is None else given
            for given, slot in zip(seeds, self.episodes.slots, strict=True)
        ]

    def _options(self, options: Mapping[str, Any], index: int) -> dict[str, Any]:
        chosen: dict[str, Any] = {}
        for key, value in options.items():
            if isinstance(value, list | tuple | np.ndarray):
                if len(value) != self.num_envs:
                    raise ConfigError(
                        f"options[{key!r}] has {len(value)} entries for {self.num_envs} lanes", "give one per lane"
                    )
                value = value[index]
            chosen[key] = value
        return chosen

    def step(self, actions: np.ndarray) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Takes one action in every lane; see the class for what happens at the end of an episode.

        Raises:
            IllegalActionError: for a value that is not an action; in strict mode also for a masked action.
            EpisodeOverError: in mode ``disabled`` if a lane has ended and was not reset.
        """
        ended = [index for index in range(self.num_envs) if self.episodes.ended(index)]
        result = self.episodes.step(actions, reset_ended=self.autoreset_mode == AutoresetMode.NEXT_STEP)
        observation = result.observation
        truncated = result.truncated | self._at_limit()
        over = result.terminated | truncated
        for index in range(self.num_envs):
            if index not in ended:
                self.view.stepped(index, bool(over[index]))
        infos = stacked(result.infos, range(self.num_envs), self.num_envs)
        if over.any() and self.autoreset_mode == AutoresetMode.SAME_STEP:
            following = np.flatnonzero(over).tolist()
            last = np.full(self.num_envs, None, dtype=object)
            for index in following:
                last[index] = {key: value[index].copy() for key, value in observation.items()}
            final = stacked(rows_of(result.infos, following), following, self.num_envs)
            write(infos, self.episodes.begin_all(following), following)
            infos.update(final_obs=last, _final_obs=over.copy(), final_info=final, _final_info=over.copy())
            observation = self.episodes.observe()
        self.view.show()
        return observation, result.reward, result.terminated, truncated, infos

    def _at_limit(self) -> np.ndarray:
        """(num_envs,) bool: lanes with ``max_episode_steps`` decisions, terminated or not, as in ``TimeLimit``."""
        limit = float("inf") if self._limit is None else self._limit
        return np.array([slot is not None and slot.decisions >= limit for slot in self.episodes.slots])

    def action_masks(self) -> np.ndarray:
        """(num_envs, 3) bool: legal actions of each lane; ``action_space.sample(mask=...)`` accepts it."""
        return self.episodes.action_masks()

    def render(self) -> tuple[Any, ...] | None:
        """One frame per lane, all of one size, as the scalar environment's; ``None`` in mode ``human`` or without one.

        In a mode that ends in ``_list``: the list of each lane's frames since the last call. A lane that was reset in
        this step shows the start of its new episode; its filmstrip still shows the whole old episode.
        """
        if self.render_mode in (None, "human"):
            return None
        return tuple(self.view.render())

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the window of mode ``human``."""
        self.view.close()


def _mode(mode: str | AutoresetMode) -> AutoresetMode:
    """Gymnasium's enum, by its name or its value."""
    if isinstance(mode, AutoresetMode):
        return mode
    known = {known.name.lower(): known for known in AutoresetMode}
    for found in AutoresetMode:
        if mode in (found.name.lower(), found.value):
            return found
    raise unknown("autoreset_mode", str(mode), known)


def _limit(steps: int | None) -> int | None:
    if steps is None or steps == -1:
        return None
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"max_episode_steps must be at least 1, got {steps!r}", "-1 or None for no limit")
    return steps


def stacked(columns: Columns, places: Sequence[int], lanes: int) -> dict[str, Any]:
    """The infos of a vector environment, as Gymnasium's ``_add_info`` joins them lane by lane.

    Args:
        columns: the infos of the lanes ``places``, increasing.
        places: these lanes.
        lanes: number of lanes of the environment; the others' values are 0 or ``None``, and masked.
    """
    found: dict[str, Any] = {}
    mask = np.zeros(lanes, dtype=bool)
    mask[places] = True
    for key, column in columns.items():
        if isinstance(column, Mapping):
            array: Any = stacked(column, places, lanes)
        else:
            array = values = _array(column)
            if len(places) < lanes:
                array = np.full((lanes, *values.shape[1:]), None if values.dtype == object else 0, values.dtype)
                array[places] = values
        found[key], found[f"_{key}"] = array, mask.copy()
    return found


def rows_of(columns: Columns, rows: Sequence[int]) -> Columns:
    """The infos of some of the lanes."""
    return {
        key: rows_of(column, rows) if isinstance(column, Mapping) else _array(column)[rows]
        for key, column in columns.items()
    }


def write(infos: dict[str, Any], columns: Columns, places: Sequence[int]) -> None:
    """Replaces the values of the lanes ``places`` in the infos of :func:`stacked`."""
    for key, column in columns.items():
        if isinstance(column, Mapping):
            write(infos[key], column, places)
        else:
            infos[key][places] = _array(column)


def _array(column: Any) -> np.ndarray:
    """A column as an array: of objects where Gymnasium takes them, such as texts."""
    if isinstance(column, np.ndarray):
        return column
    return np.array(column, dtype=None if isinstance(column[0], bool | int | float) else object)

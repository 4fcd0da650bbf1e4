"""The SB3 vectorised environment over Ray actors: lanes on several devices or machines, replaced when lost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from addiffusion_env.distributed.actor_pool import ActorPool, BaseWorker, LostWorkerError, RayConfig
from addiffusion_env.engine.lane import FaultCount
from addiffusion_env.envs.sb3_env import AdDiffusionVecEnv, SharedVecEnv
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.envs.slot import info_of
from addiffusion_env.errors import ConfigError, NumericsError, ResumeError, WorkerError
from addiffusion_env.rewards import make_reward
from addiffusion_env.settings import lane_count, whole_seed

Observation = dict[str, np.ndarray]

THUMBNAIL = 64
"""Maximum side, in pixels, of the finished images that workers send."""


class Lanes(NamedTuple):
    """The ``k`` lanes of a worker after a reset or a step.

    At the end of an episode the observation is the first of the next one, the info that of the ended one, as SB3 has
    it.

    Attributes:
        observation: key -> (k, dim) float32.
        infos: one dict per lane.
        masks: (k, 3) bool, legal actions.
        reward: (k,) float32.
        done: (k,) bool.
        reset_infos: lane -> the info of the new episode, for lanes that were reset in a step.
    """

    observation: Observation
    infos: list[dict[str, Any]]
    masks: np.ndarray
    reward: np.ndarray
    done: np.ndarray
    reset_infos: dict[int, dict[str, Any]]


class LaneWorker(BaseWorker):
    """The Ray actor of rollouts: one vector environment on its own device; latents stay in its process."""

    env: AdDiffusionVecEnv

    def setup(self, settings: Mapping[str, Any], lanes: int) -> None:
        """Loads the model; ``settings`` are keyword arguments of the environment."""
        self.env = AdDiffusionVecEnv(lanes, **settings)

    def begin(self, places: Sequence[tuple[int, int]], options: Sequence[Mapping[str, Any]]) -> Lanes:
        """Begins an episode in every lane.

        Args:
            places: (seed of the lane, index of its episode) for each lane.
            options: reset options of each lane.
        """
        episodes, k = self.env.episodes, len(places)
        begun = episodes.begin_all(range(k), [seed for seed, _ in places], options, [first for _, first in places])
        self.env.view.reset()
        infos = [_reduced(info_of(begun, lane)) for lane in range(k)]
        still = np.zeros(k, np.float32), np.zeros(k, bool)
        return Lanes(episodes.observe(), infos, self.env.action_masks(), *still, {})

    def step(self, actions: np.ndarray) -> Lanes:
        """Takes one action in every lane; a lane whose episode ends begins its next one."""
        self.env.step_async(actions)
        observation, reward, done, infos = self.env.step_wait()
        begun = {int(lane): _reduced(dict(self.env.reset_infos[lane])) for lane in np.flatnonzero(done)}
        return Lanes(observation, [_reduced(info) for info in infos], self.env.action_masks(), reward, done, begun)

    def call(self, name: str, /, *arguments: Any, **named: Any) -> Any:
        """Calls a method of the vector environment."""
        return getattr(self.env, name)(*arguments, **named)


def _reduced(info: dict[str, Any]) -> dict[str, Any]:
    """An info with a thumbnail instead of its image, and an empty ``worker_lost``."""
    return {**info, "image": thumbnail(info["image"]), "worker_lost": ""}


def thumbnail(pixels: np.ndarray, side: int = THUMBNAIL) -> np.ndarray:
    """Shrinks a (h, w, 3) uint8 image so that no side exceeds ``side``; smaller images are returned unchanged."""
    if max(pixels.shape[:2]) <= side:
        return pixels
    small = Image.fromarray(pixels)
    small.thumbnail((side, side))
    return np.asarray(small)


@dataclass
class Losses:
    """Counts of lost workers.

    Attributes:
        deaths: workers whose process, machine or connection was lost.
        hangs: workers that did not answer in time.
        lost_episodes: episodes that were lost with them and reported as truncated.
    """

    deaths: int = 0
    hangs: int = 0
    lost_episodes: int = 0


class RayVecEnv(SharedVecEnv):
    """``num_envs`` lanes, distributed over Ray actors; each holds one vector environment on its own device.

    Observations, rewards and infos are sent back after each step; latents stay with the actor, except for checkpoints.
    Lane ``i`` runs the same episodes for any number of workers, up to rounding, which depends on the batch size.

    A worker that dies or does not answer within ``timeout`` seconds is replaced. The episodes of its lanes are
    truncated with reward 0, the last observation as ``terminal_observation`` and the cause in ``info["worker_lost"]``;
    each lane continues with its next episode.

    Args:
        num_envs: total number of lanes.
        seed: lane i is seeded with ``seed + i`` at the first reset.
        rollouts: number of workers and their resources.
        **settings: the fields of :class:`addiffusion_env.envs.settings.EnvSettings`; the backbone by name.

    Attributes:
        losses: counts of lost workers.
        dropped: count of episodes dropped after a fault, of all workers; see ``max_faults``.

    Raises:
        ConfigError: for invalid settings, or fewer lanes than workers.
        MissingPackageError: if Ray is not installed.
        WorkerError: if a worker is lost more often in a row than ``rollouts.patience``.
    """

    def __init__(self, num_envs: int, seed: int = 0, rollouts: RayConfig | None = None, **settings: Any) -> None:
        config = RayConfig() if rollouts is None else rollouts
        checked = EnvSettings.of("num_envs", "seed", "rollouts", **settings)
        if not isinstance(checked.backbone, str):
            raise ConfigError(
                "Ray workers load the weights themselves, got a loaded backbone",
                "give the backbone by name: backbone=emoji",
            )
        self._terms = tuple(make_reward(checked.reward).terms)
        num_envs = lane_count(num_envs)
        self.shares = config.shares(num_envs)
        self.losses = Losses()
        self.dropped = FaultCount(checked.max_faults)
        arguments = [(settings, len(share)) for share in self.shares]
        self.pool = ActorPool(config, LaneWorker, arguments, checked.device)
        self._lost: dict[int, LostWorkerError] = {}
        names = ("observation_space", "action_space")
        spaces = [self._answer(0, self.pool.ask(0, "call", "get_attr", name))[0] for name in names]
        super().__init__(num_envs, *spaces)
        self._first_seed: int | None = whole_seed(seed)
        self._lane_seeds = np.zeros(num_envs, dtype=np.int64)
        self._episodes = np.full(num_envs, -1, dtype=np.int64)
        self._observation: Observation = {}
        self._infos: list[dict[str, Any]] = [{} for _ in range(num_envs)]
        self._masks = np.ones((num_envs, 3), dtype=bool)
        self._asked: dict[int, Any] = {}
        self._until = 0.0

    # ------------------------------------------------------------------ episodes
    def reset(self) -> Observation:  # type: ignore[override]
        """Begins an episode in every lane, with the options of ``set_options``; only the first reset uses the seed."""
        for lane, seed in enumerate(self._seeds):
            if seed is None and self._first_seed is not None:
                seed = self._first_seed + lane
            if seed is not None:
                self._lane_seeds[lane], self._episodes[lane] = seed, -1
        self._first_seed = None
        self._reset_seeds()
        options = list(self._options)
        self._reset_options()
        self._episodes += 1
        workers = range(len(self.shares))
        asked = [self._ask_begin(worker, options) for worker in workers]
        parts = [self._begin(worker, options, ref) for worker, ref in zip(workers, asked, strict=True)]
        self._lost.clear()
        self._observation = _stack([part.observation for part in parts])
        self._masks = np.concatenate([part.masks for part in parts])
        self._infos = [info for part in parts for info in part.infos]
        self.reset_infos = list(self._infos)
        return dict(self._observation)

    def _places(self, worker: int) -> list[tuple[int, int]]:
        return [(int(self._lane_seeds[lane]), int(self._episodes[lane])) for lane in self.shares[worker]]

    def _ask_begin(self, worker: int, options: Sequence[Mapping[str, Any]]) -> Any:
        share = self.shares[worker]
        return self.pool.ask(worker, "begin", self._places(worker), options[share.start : share.stop])

    def _begin(self, worker: int, options: Sequence[Mapping[str, Any]], ref: Any = None) -> Lanes:
        """Resets a worker's lanes; a worker that is lost meanwhile is replaced and its lanes reset again."""
        while True:
            try:
                ref = self._ask_begin(worker, options) if ref is None else ref
                return self.pool.answer(worker, ref, time.monotonic() + self.pool.config.timeout)
            except LostWorkerError as error:
                self._count(error, 0)
                self.pool.replace(worker, error)
                ref = None

    def step_async(self, actions: np.ndarray) -> None:
        """Sends each worker its actions."""
        self._until = time.monotonic() + self.pool.config.timeout
        self._asked = {
            worker: self.pool.ask(worker, "step", np.asarray(actions)[share.start : share.stop])
            for worker, share in enumerate(self.shares)
            if worker not in self._lost
        }

    def step_wait(self) -> tuple[Observation, np.ndarray, np.ndarray, list[dict[str, Any]]]:  # type: ignore[override]
        """Waits for every worker, and replaces those that are lost."""
        answers: dict[int, Lanes] = {}
        for worker, ref in self._asked.items():
            try:
                answers[worker] = self.pool.answer(worker, ref, self._until)
            except LostWorkerError as error:
                self._lost[worker] = error
        self._asked = {}
        self._count_faults(answers)
        parts: list[Lanes] = [answers.get(worker) or self._recover(worker) for worker in range(len(self.shares))]
        self._lost.clear()
        self._observation = _stack([part.observation for part in parts])
        self._masks = np.concatenate([part.masks for part in parts])
        reward, done = (np.concatenate([getattr(part, name) for part in parts]) for name in ("reward", "done"))
        infos = [info for part in parts for info in part.infos]
        self._infos = list(infos)
        for part, share in zip(parts, self.shares, strict=True):
            for lane, info in part.reset_infos.items():
                self.reset_infos[share.start + lane] = self._infos[share.start + lane] = info
        for worker in answers:
            lanes = slice(self.shares[worker].start, self.shares[worker].stop)
            self._episodes[lanes] += done[lanes]
        return dict(self._observation), reward, done, infos

    def _count_faults(self, answers: Mapping[int, Lanes]) -> None:
        """Counts the episodes dropped by all workers, to which ``max_faults`` applies."""
        for part in answers.values():
            for info in part.infos:
                if info["fault"]:
                    self.dropped.drop(NumericsError(info["fault"], "raise max_faults, or change the prompt"))

    def _recover(self, worker: int) -> Lanes:
        """Replaces a lost worker; the episodes of its lanes are truncated and the next ones begun."""
        error, share = self._lost[worker], self.shares[worker]
        self._count(error, len(share))
        self.pool.replace(worker, error)
        self._episodes[share.start : share.stop] += 1
        reset = self._begin(worker, [{}] * self.num_envs)
        infos = [
            {
                **self._infos[lane],
                "reward_terms": dict.fromkeys(self._terms, 0.0),
                "worker_lost": error.cause,
                "terminal_observation": {key: value[lane] for key, value in self._observation.items()},
                "TimeLimit.truncated": True,
            }
            for lane in share
        ]
        done = np.ones(len(share), dtype=bool)
        return reset._replace(infos=infos, done=done, reset_infos=dict(enumerate(reset.infos)))

    def _count(self, error: LostWorkerError, episodes: int) -> None:
        self.losses.deaths += error.cause == "died"
        self.losses.hangs += error.cause == "hung"
        self.losses.lost_episodes += episodes

    def _answer(self, worker: int, ref: Any) -> Any:
        """A worker's answer outside of a step. A lost worker's episodes are truncated in the next step.

        Raises:
            WorkerError: if the worker is lost.
        """
        try:
            return self.pool.answer(worker, ref, time.monotonic() + self.pool.config.timeout)
        except LostWorkerError as error:
            self._lost[worker] = error
            raise WorkerError(
                f"Ray worker {worker} {error}",
                "call step(): the worker is replaced and its lanes begin their next episodes",
            ) from error

    # ------------------------------------------------------------------ masks and state
    def action_masks(self) -> np.ndarray:
        """(num_envs, 3) bool: legal actions of each lane."""
        return self._masks

    def state_dict(self) -> dict[str, Any]:
        """The state of all lanes (:meth:`addiffusion_env.envs.episodes.Episodes.state_dict`), and the loss counts.

        It can be loaded with any number of workers, and by :class:`AdDiffusionVecEnv`. The lanes of a worker that does
        not answer are stored at the beginning of their episode.
        """
        asked = [self.pool.ask(worker, "call", "state_dict") for worker in range(len(self.shares))]
        slots: list[Any] = []
        for worker, ref in enumerate(asked):
            try:
                slots += self._answer(worker, ref)["slots"]
            except WorkerError:
                slots += [{"seed": seed, "episode": episode, "lane": None} for seed, episode in self._places(worker)]
        return {"slots": slots, "faults": self.dropped.count, "losses": asdict(self.losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`, or that of :class:`AdDiffusionVecEnv`.

        Raises:
            ResumeError: if the number of lanes differs.
            WorkerError: if a worker is lost.
        """
        slots = state["slots"]
        if len(slots) != self.num_envs:
            raise ResumeError(
                f"the state has {len(slots)} lanes, this environment {self.num_envs}", f"use num_envs={len(slots)}"
            )
        parts = [{"slots": slots[share.start : share.stop], "faults": 0} for share in self.shares]
        asked = [self.pool.ask(worker, "call", "load_state_dict", part) for worker, part in enumerate(parts)]
        for worker, ref in enumerate(asked):
            self._answer(worker, ref)
        self._masks = np.concatenate(self._ask_all("action_masks"))
        for lane, slot in enumerate(slots):
            if slot is not None:
                self._lane_seeds[lane], self._episodes[lane] = slot["seed"], slot["episode"]
        self._first_seed = None
        self.losses = Losses(**state.get("losses", {}))
        self.dropped.count = state["faults"]

    # ------------------------------------------------------------------ SB3's interface
    def close(self) -> None:
        """Ends the workers."""
        self.pool.close()

    def has_attr(self, attr_name: str) -> bool:
        """Whether the lanes' environments have an attribute or a method."""
        return callable(getattr(AdDiffusionVecEnv, attr_name, None)) or super().has_attr(attr_name)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute of each lane's worker: the lanes of a worker share one environment."""
        values = list(chain(*self._ask_all("get_attr", attr_name)))
        return [values[lane] for lane in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets the attribute in every worker."""
        self._ask_all("set_attr", attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Calls a method in every worker; ``action_masks`` returns each lane's row of the last step."""
        if method_name == "action_masks":
            return [self._masks[lane] for lane in self._get_indices(indices)]
        results = list(chain(*self._ask_all("env_method", method_name, *args, **kwargs)))
        return [results[lane] for lane in self._get_indices(indices)]

    def _ask_all(self, *call: Any, **named: Any) -> list[Any]:
        """Calls a method of every worker's vector environment."""
        asked = [self.pool.ask(worker, "call", *call, **named) for worker in range(len(self.shares))]
        return [self._answer(worker, ref) for worker, ref in enumerate(asked)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One frame per lane."""
        return list(chain(*self._ask_all("get_images")))


def _stack(parts: Sequence[Observation]) -> Observation:
    """Concatenates the observations of several workers into new, writable arrays."""
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

"""The Ray actor of rollouts: it holds one vector environment on its own device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from addiffusion_env.distributed.actor_pool import BaseWorker
from addiffusion_env.envs.sb3_env import AdDiffusionVecEnv
from addiffusion_env.envs.slot import info_of

THUMBNAIL = 64
"""Maximum side, in pixels, of the finished images that workers send."""


@dataclass(frozen=True)
class WorkerReset:
    """The result of a reset of ``k`` lanes.

    Attributes:
        observation: key -> (k, dim) float32.
        infos: one dict per lane.
        masks: (k, 3) bool, legal actions.
    """

    observation: dict[str, np.ndarray]
    infos: list[dict[str, Any]]
    masks: np.ndarray


@dataclass(frozen=True)
class WorkerStep(WorkerReset):
    """The result of one step of ``k`` lanes, with SB3's same-step reset.

    At the end of an episode the observation is the first of the next one, the info that of the ended one.

    Attributes:
        reward: (k,) float32.
        done: (k,) bool.
        reset_infos: lane -> the info of the new episode, for lanes that were reset.
    """

    reward: np.ndarray
    done: np.ndarray
    reset_infos: dict[int, dict[str, Any]]


class LaneWorker(BaseWorker):
    """A worker of :class:`addiffusion_env.distributed.ray_vec_env.RayVecEnv`; latents stay in its process."""

    env: AdDiffusionVecEnv

    def setup(self, threads: int, settings: Mapping[str, Any], lanes: int) -> None:
        """Loads the model.

        Args:
            threads: number of torch threads in this process.
            settings: keyword arguments of the environment.
            lanes: number of lanes.
        """
        torch.set_num_threads(threads)
        self.env = AdDiffusionVecEnv(lanes, **settings)

    def begin(self, places: Sequence[tuple[int, int]], options: Sequence[Mapping[str, Any]]) -> WorkerReset:
        """Begins an episode in every lane.

        Args:
            places: (seed of the lane, index of its episode) for each lane.
            options: reset options of each lane.
        """
        episodes = self.env.episodes
        seeds, firsts = [seed for seed, _ in places], [episode for _, episode in places]
        begun = episodes.begin_all(range(len(places)), seeds, options, firsts)
        infos = [info_of(begun, lane) for lane in range(len(places))]
        self.env.view.reset()
        return WorkerReset(episodes.observe(), [self._reduced(info) for info in infos], self.env.action_masks())

    def step(self, actions: np.ndarray) -> WorkerStep:
        """Takes one action in every lane; a lane whose episode ends begins its next one."""
        self.env.step_async(actions)
        observation, reward, done, infos = self.env.step_wait()
        reset_infos = {int(lane): self._reduced(dict(self.env.reset_infos[lane])) for lane in np.flatnonzero(done)}
        infos = [self._reduced(info) for info in infos]
        return WorkerStep(observation, infos, self.env.action_masks(), reward, done, reset_infos)

    def _reduced(self, info: dict[str, Any]) -> dict[str, Any]:
        """An info with a thumbnail instead of its image, and an empty ``worker_lost``."""
        return {**info, "image": thumbnail(info["image"]), "worker_lost": ""}

    def state(self) -> list[Any]:
        """The exact state of every lane, latents included, for a checkpoint."""
        return self.env.state_dict()["slots"]

    def load(self, slots: Sequence[Any]) -> np.ndarray:
        """Restores :meth:`state`; returns the (k, 3) legal actions."""
        self.env.load_state_dict({"slots": slots, "faults": 0})
        return self.env.action_masks()

    def get(self, name: str) -> Any:
        """Returns an attribute of the vector environment."""
        return getattr(self.env, name)

    def set(self, name: str, value: Any) -> None:
        """Sets an attribute of the vector environment."""
        setattr(self.env, name, value)

    def call(self, name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Calls a method of the vector environment."""
        return getattr(self.env, name)(*arguments, **named)


def thumbnail(pixels: np.ndarray, side: int = THUMBNAIL) -> np.ndarray:
    """Shrinks a (h, w, 3) uint8 image so that no side exceeds ``side``; smaller images are returned unchanged."""
    if max(pixels.shape[:2]) <= side:
        return pixels
    small = Image.fromarray(pixels)
    small.thumbnail((side, side))
    return np.asarray(small)

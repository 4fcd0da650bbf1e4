"""What a Ray actor of a roll-out does: it holds one vector environment with its lanes, on its own device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from addiffusion_env.distributed.actor_pool import BaseWorker
from addiffusion_env.envs.sb3_env import AdDiffusionVecEnv

THUMBNAIL = 64
"""Longest side, in pixels, of the finished images that workers send."""


@dataclass(frozen=True)
class Begun:
    """``k`` lanes at the beginning of an episode.

    Attributes:
        observation: key -> (k, dim) float32.
        infos: one dict a lane.
        masks: (k, 3) bool, legal actions.
    """

    observation: dict[str, np.ndarray]
    infos: list[dict[str, Any]]
    masks: np.ndarray


@dataclass(frozen=True)
class Stepped:
    """What one step of ``k`` lanes gave.

    Attributes:
        observation: key -> (k, dim) float32; where an episode ended, the next one's first.
        reward: (k,) float32.
        done: (k,) bool.
        infos: one dict a lane, SB3's; where an episode ended, the old one's.
        fresh: place -> the new episode's info, where one began.
        masks: (k, 3) bool, legal actions.
    """

    observation: dict[str, np.ndarray]
    reward: np.ndarray
    done: np.ndarray
    infos: list[dict[str, Any]]
    fresh: dict[int, dict[str, Any]]
    masks: np.ndarray


class LaneWorker(BaseWorker):
    """Lanes of a :class:`addiffusion_env.distributed.ray_vec_env.RayVecEnv`; latents stay here."""

    env: AdDiffusionVecEnv

    def setup(self, threads: int, settings: Mapping[str, Any], lanes: int) -> None:
        """Loads the model.

        Args:
            threads: of torch, in this process.
            settings: keyword arguments of the environment.
            lanes: how many.
        """
        torch.set_num_threads(threads)
        self.env = AdDiffusionVecEnv(lanes, **settings)

    def spaces(self) -> tuple[Any, Any]:
        """The observation space and the action space of one lane."""
        return self.env.observation_space, self.env.action_space

    def begin(self, places: Sequence[tuple[int, int]], options: Sequence[Mapping[str, Any]]) -> Begun:
        """Begins an episode in every lane.

        Args:
            places: (lane's seed, which of its episodes) for each lane.
            options: of the reset, for each lane.
        """
        episodes = self.env.episodes
        infos = [
            self._lighter(episodes.begin(index, seed, chosen, episode))
            for index, ((seed, episode), chosen) in enumerate(zip(places, options, strict=True))
        ]
        self.env.view.reset()
        return Begun(episodes.observe(), infos, self.env.action_masks())

    def step(self, actions: np.ndarray) -> Stepped:
        """Takes one action in every lane; a lane whose episode ends begins its next one."""
        self.env.step_async(actions)
        observation, reward, done, infos = self.env.step_wait()
        fresh = {int(place): self._lighter(dict(self.env.reset_infos[place])) for place in np.flatnonzero(done)}
        infos = [self._lighter(info) for info in infos]
        return Stepped(observation, reward, done, infos, fresh, self.env.action_masks())

    def _lighter(self, info: dict[str, Any]) -> dict[str, Any]:
        """An info with a thumbnail in the place of its image, and no word of a lost worker."""
        return {**info, "image": thumbnail(info["image"]), "worker_lost": ""}

    def state(self) -> list[Any]:
        """Every lane exactly, latents included: for a checkpoint."""
        return self.env.state_dict()["slots"]

    def load(self, slots: Sequence[Any]) -> np.ndarray:
        """Restores :meth:`state`; returns the (k, 3) legal actions."""
        self.env.load_state_dict({"slots": slots, "faults": 0})
        return self.env.action_masks()

    def images(self) -> list[Any]:
        """One frame a lane; see :meth:`AdDiffusionVecEnv.get_images`."""
        return list(self.env.get_images())

    def get(self, name: str) -> Any:
        """An attribute of the vector environment."""
        return getattr(self.env, name)

    def set(self, name: str, value: Any) -> None:
        """Sets one."""
        setattr(self.env, name, value)

    def call(self, name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Calls a sampler of the vector environment."""
        return getattr(self.env, name)(*arguments, **named)


def thumbnail(pixels: np.ndarray, side: int = THUMBNAIL) -> np.ndarray:
    """(h, w, 3) uint8, made smaller so that no side is longer than ``side``; smaller images stay as they are."""
    if max(pixels.shape[:2]) <= side:
        return pixels
    small = Image.fromarray(pixels)
    small.thumbnail((side, side))
    return np.asarray(small)

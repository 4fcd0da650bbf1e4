"""A trained policy as a method: it plays episodes like any baseline."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from addiffusion_env.agents.policy_file import PolicyConfig, load_policy
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.episode import Episode, play
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.engine.programs import legal_actions
from addiffusion_env.engine.requests import Decide, Request
from addiffusion_env.envs.framing import Framer, Point
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.observations.features import sees_previews
from addiffusion_env.observations.observer import Observer
from addiffusion_env.prompts.base import Prompt
from addiffusion_env.scorers.look import LookScorers


@dataclass
class LearnedMethod:
    """A policy that looks and decides, at one price.

    Attributes:
        policy: the network.
        config: what it was trained on.
        price: of one NFE; what moves it along the frontier.
        name: for records.
        fingerprint: of its files, so that a policy trained again under the same name gets records of its own.
    """

    policy: ActorCriticPolicy
    config: PolicyConfig
    price: float
    name: str = "policy"
    fingerprint: str = ""

    def __post_init__(self) -> None:
        self._observer: Observer | None = None
        self._framer: Framer | None = None
        self._process: ProcessConfig | None = None

    @property
    def looks(self) -> bool:
        """Whether it needs previews: not when it reads the denoiser's features instead."""
        return sees_previews(list(self.config.observation))

    @classmethod
    def from_run(cls, folder: Path | str, price: float | None = None, name: str | None = None) -> LearnedMethod:
        """Loads a policy's folder (a run's ``policy``, or the run itself).

        Raises:
            WeightsError: when there is none.
        """
        path = Path(folder)
        if (path / "policy").is_dir():
            path = path / "policy"
        policy, config = load_policy(path)
        chosen = config.default_price if price is None else float(price)
        return cls(policy, config, chosen, name or f"policy@{chosen:g}")

    def settings(self) -> EnvSettings:
        """The environment that the policy was trained on."""
        return EnvSettings.of(**self.config.environment)

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The decision process that the policy was trained on, whatever ``base`` is: a policy knows only its own."""
        return self._process or base

    def bind(self, backbone: Backbone, scorers: LookScorers) -> None:
        """Makes the policy ready to decide on a backbone's lanes."""
        settings = self.settings()
        self._process = settings.process(backbone.capabilities, backbone.name)
        self._framer = Framer(backbone, self._process, scorers, self.config.highest_price)
        width = backbone.capabilities.feature_dim or 0
        self._observer = Observer(scorers.clip_dim, list(self.config.observation), width)

    def program(
        self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int, keep_strip: bool = False
    ) -> Generator[Request, Any, Episode]:
        """One episode."""
        return play(backbone, process, prompt, seed, looks=self.looks, keep_strip=keep_strip)

    def decide(self, requests: Sequence[Decide]) -> list[int]:
        """The most probable legal action of each lane."""
        probabilities, legal = self._distribution(requests)
        return [int(action) for action in np.where(legal, probabilities, -1.0).argmax(1)]

    def probabilities(self, requests: Sequence[Decide]) -> np.ndarray:
        """(B, 3) the policy's probability of each action, in [0, 1]; illegal ones are 0, the others sum to 1."""
        probabilities, legal = self._distribution(requests)
        allowed = np.where(legal, probabilities, 0.0)
        return allowed / allowed.sum(1, keepdims=True)

    @torch.no_grad()
    def _distribution(self, requests: Sequence[Decide]) -> tuple[np.ndarray, np.ndarray]:
        """(B, 3) what the network says of each action, and (B, 3) bool: which are legal."""
        assert self._framer is not None and self._observer is not None and self._process is not None, "bind() first"
        points = [Point(request.lane, request.before, self.price) for request in requests]
        observation = self._observer.observe(self._framer.frame(points))
        tensors = {key: torch.as_tensor(value, device=self.policy.device) for key, value in observation.items()}
        probabilities = self.policy.get_distribution(tensors).distribution.probs.cpu().numpy()  # type: ignore[union-attr]
        return probabilities, np.stack([legal_actions(request.lane, self._process) for request in requests])

"""Stops at random: NFE varies over prompts, independently of their content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from addiffusion_env.engine.lane import Decide, Lane
from addiffusion_env.engine.process import REFINE_PRESETS, Action, ProcessConfig
from addiffusion_env.errors import ConfigError
from addiffusion_env.prompts import stable_hash
from addiffusion_env.samplers.base import BaseSampler


@dataclass(frozen=True)
class RandomStop(BaseSampler):
    """Stops with the same probability at every decision.

    The draw is a hash of prompt, seed and decision, so an image does not depend on the rest of the batch.

    Attributes:
        probability: of a stop at each decision, in [0, 1].
    """

    probability: float

    usage: ClassVar[str] = "random:PROBABILITY"
    example: ClassVar[tuple[str, str]] = ("emoji", "random:0.5")

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"random: PROBABILITY must be in [0, 1], got {self.probability}", "use random:0.1")

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The base process without refinement."""
        return replace(base, refine=REFINE_PRESETS["off"])

    def decide(self, requests: Sequence[Decide]) -> list[int]:
        """Stops where the draw is below the probability."""
        return [
            int(Action.STOP if _uniform(request.lane) < self.probability else Action.CONTINUE) for request in requests
        ]


def _uniform(lane: Lane) -> float:
    """A pseudo-random number in [0, 1), keyed by image and decision."""
    return stable_hash("random stop", lane.prompt.prompt_id, lane.seed, len(lane.actions)) / 2**63

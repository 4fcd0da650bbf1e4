"""A whole episode as one coroutine, for pipelines and evaluation, where the policy runs in the same process."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.coroutines import env_step
from addiffusion_env.engine.lane import Begin, Decide, Lane, Request
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers.image_scores import GeneratedImage


@dataclass(frozen=True)
class Episode:
    """A finished episode.

    Attributes:
        lane: the final lane; its ``actions``, ``nfe``, ``calls``, ``refinements`` and ``masks`` are the trace.
        image: the finished image and its scores.
    """

    lane: Lane
    image: GeneratedImage


def play(
    backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int, looks: bool = True
) -> Generator[Request, Any, Episode]:
    """Runs one episode, requesting the policy's action (:class:`Decide`) at every decision.

    Args:
        backbone: the model.
        process: what the actions do.
        prompt: the prompt.
        seed: the image's seed.
        looks: whether the policy needs scored previews; without them their cost is saved.
    """
    lane = yield Begin(process, prompt, seed)
    before = memory = None
    image: GeneratedImage | None = None
    while image is None:
        action = yield Decide(lane, before, memory)
        before, memory = lane.scores, getattr(action, "memory", None)
        lane, image = yield from env_step(backbone, process, lane, int(action), looks)
    return Episode(lane, image)

"""A whole episode as one program: for pipelines and evaluation, where the policy is at hand."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.lane import Lane, open_lane
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.engine.programs import turn
from addiffusion_env.engine.requests import Decide, Picture, Request, to_pixels
from addiffusion_env.prompts.base import Prompt


@dataclass(frozen=True)
class Episode:
    """A finished episode.

    Attributes:
        lane: where the lane ended; its ``actions``, ``nfe``, ``calls``, ``refinements`` and ``masks`` are the trace.
        picture: the finished picture and its scores.
        strip: previews (h, w, 3) uint8 at each decision, when they were asked for.
        preferences: the preview's preference at each decision that had a look; NaN where it had none.
    """

    lane: Lane
    picture: Picture
    strip: tuple[np.ndarray, ...]
    preferences: tuple[float, ...]


def play(
    backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int, looks: bool = True, keep_strip: bool = False
) -> Generator[Request, Any, Episode]:
    """Plays one episode, asking the policy (:class:`Decide`) at every decision.

    Args:
        backbone: the model.
        process: what the actions do.
        prompt: what to draw.
        seed: the picture's seed.
        looks: whether the policy needs to see previews; policies that are blind save their cost.
        keep_strip: keep a preview of every decision for a film strip.
    """
    lane = open_lane(backbone, process, prompt, seed)
    before = None
    strip: list[np.ndarray] = []
    preferences: list[float] = []
    picture: Picture | None = None
    while picture is None:
        preferences.append(float("nan") if lane.look is None else float(lane.look.preference[0]))
        if keep_strip and lane.x0 is not None:
            strip.append(preview_pixels(backbone, lane))
        action = yield Decide(lane, before)
        before = lane.look
        lane, picture = yield from turn(backbone, process, lane, action, looks)
    return Episode(lane, picture, tuple(strip), tuple(preferences))


def preview_pixels(backbone: Backbone, lane: Lane) -> np.ndarray:
    """(h, w, 3) uint8: the cheap preview of a lane's last clean prediction."""
    assert lane.x0 is not None
    return to_pixels(backbone.preview(lane.x0)[0])

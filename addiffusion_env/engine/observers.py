"""Observers of an episode: told of every decision and every evaluation, whatever the episode is for."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.episode import Episode
from addiffusion_env.engine.lane import Decide, Evaluate, Lane, Outcome, Request, to_pixels


class EpisodeObserver:
    """Is told what happens in one episode. Subclasses override what they need."""

    def decided(self, request: Decide, action: int) -> None:
        """Told of a decision: where the lane stood, and what was chosen."""

    def evaluated(self, request: Evaluate, outcome: Outcome) -> Outcome:
        """Told of an evaluation; what it returns takes the place of the outcome."""
        return outcome


class Decisions(EpisodeObserver):
    """Keeps every decision of an episode.

    Attributes:
        requests: the lanes as they stood, in order.
        actions: what was chosen at each.
    """

    def __init__(self) -> None:
        self.requests: list[Decide] = []
        self.actions: list[int] = []

    def decided(self, request: Decide, action: int) -> None:
        """Keeps it."""
        self.requests.append(request)
        self.actions.append(int(action))

    def lanes_of(self, episode: Episode) -> list[Lane]:
        """The lane at each decision of the attempt that was kept: others are drawn from other seeds."""
        return [request.lane for request in self.requests if request.lane.seed == episode.lane.seed]


def observed(
    coroutine: Generator[Request, Any, Episode], observers: Sequence[EpisodeObserver]
) -> Generator[Request, Any, Episode]:
    """A sampler's program, with observers told of its decisions and evaluations."""
    answer = None
    while True:
        try:
            request = coroutine.send(answer)
        except StopIteration as stop:
            episode: Episode = stop.value
            return episode
        answer = yield request
        for observer in observers:
            if isinstance(request, Decide):
                observer.decided(request, answer)
            elif isinstance(request, Evaluate):
                answer = observer.evaluated(request, answer)


def previews_of(backbone: Backbone, lanes: Sequence[Lane]) -> list[np.ndarray | None]:
    """What each lane shows: (h, w, 3) uint8 at the size of previews, or ``None`` before the first evaluation.

    That is the finished image where one waits to be judged, else the preview of the clean prediction; previews are
    decoded in one batch.
    """
    height, width = backbone.capabilities.preview_size
    under_way = [lane.x0 for lane in lanes if lane.x0 is not None and lane.shown is None]
    decoded = iter(backbone.preview(torch.cat(under_way)) if under_way else ())

    def shown(lane: Lane) -> np.ndarray | None:
        if lane.shown is not None:
            return np.asarray(Image.fromarray(lane.shown.pixels()).resize((width, height)))
        return None if lane.x0 is None else to_pixels(next(decoded))

    return [shown(lane) for lane in lanes]

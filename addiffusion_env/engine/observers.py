"""Observers of an episode: callbacks for its decisions and evaluations."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.episode import Episode
from addiffusion_env.engine.lane import Decide, Evaluate, Lane, Outcome, Request
from addiffusion_env.scorers.image_scores import to_pixels


class EpisodeObserver:
    """Callbacks of one episode. Subclasses override the ones they need."""

    def decided(self, request: Decide, action: int) -> None:
        """Called after a decision, with the lane's state and the chosen action."""

    def evaluated(self, request: Evaluate, outcome: Outcome) -> Outcome:
        """Called after an evaluation; the returned value replaces the outcome."""
        return outcome


class Decisions(EpisodeObserver):
    """Records every decision of an episode.

    Attributes:
        requests: the requests, in order, with the lane's state at each.
        actions: the action chosen at each.
    """

    def __init__(self) -> None:
        self.requests: list[Decide] = []
        self.actions: list[int] = []

    def decided(self, request: Decide, action: int) -> None:
        """Records the decision."""
        self.requests.append(request)
        self.actions.append(int(action))

    def lanes_of(self, episode: Episode) -> list[Lane]:
        """The lane at each decision of the attempt that was kept; other attempts have other seeds."""
        return [request.lane for request in self.requests if request.lane.seed == episode.lane.seed]


class LastDecision(EpisodeObserver):
    """Keeps the last decision of each attempt; those before it are dropped, with the tensors of their lanes."""

    def __init__(self) -> None:
        self.requests: dict[int, Decide] = {}

    def decided(self, request: Decide, action: int) -> None:
        """Records the decision."""
        self.requests[request.lane.seed] = request

    def of(self, episode: Episode) -> Decide | None:
        """The last decision of the attempt that was kept; ``None`` where nothing was decided."""
        return self.requests.get(episode.lane.seed)


def observed(
    coroutine: Generator[Request, Any, Episode], observers: Sequence[EpisodeObserver]
) -> Generator[Request, Any, Episode]:
    """A sampler's coroutine whose decisions and evaluations are passed to observers."""
    answer: Any = None
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
    """The preview of each lane: (h, w, 3) uint8, or ``None`` before the first evaluation.

    It is the finished image where one is being checked (``check_finished``), otherwise the preview of the clean
    prediction; all previews are decoded in one batch.
    """
    height, width = backbone.capabilities.preview_size
    predictions = [lane.x0 for lane in lanes if lane.x0 is not None and lane.shown is None]
    decoded = iter(backbone.preview(torch.cat(predictions)) if predictions else ())

    def preview(lane: Lane) -> np.ndarray | None:
        if lane.shown is not None:
            return np.asarray(Image.fromarray(lane.shown.pixels()).resize((width, height)))
        return None if lane.x0 is None else to_pixels(next(decoded))

    return [preview(lane) for lane in lanes]

"""Pictures in the making, moment by moment: what the page shows, without the page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from addiffusion_env.agents.learned import LearnedMethod
from addiffusion_env.agents.pipeline import AdaptivePipeline
from addiffusion_env.backbones import Traits
from addiffusion_env.baselines import make_method
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import Decide, Lane, Picture, open_lane, to_pixels
from addiffusion_env.engine.programs import turn
from addiffusion_env.errors import ConfigError
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers import SCORERS
from addiffusion_env.scorers.look import Look

REFERENCE = "fixed:50"
"""What everybody compares with."""

MOST_MOMENTS = 10
"""Previews kept of a fixed-step method, evenly spaced over its steps."""


@dataclass(frozen=True)
class Moment:
    """One decision.

    Attributes:
        step: of the schedule, done before it.
        nfe: spent before it.
        pixels: (h, w, 3) uint8, what was there to see: the preview, or the finished picture that could be taken.
        action: 0 continue, 1 stop, 2 refine.
        probabilities: (3,) of the policy, illegal actions 0; ``None`` for a method that follows a schedule.
        preference: of what was seen; NaN where nobody looked.
        mask: (h', w') region that the refinement before drew again; ``None`` for none.
    """

    step: int
    nfe: float
    pixels: np.ndarray
    action: int
    probabilities: np.ndarray | None
    preference: float
    mask: np.ndarray | None


@dataclass(frozen=True)
class Take:
    """A picture in the making, or made.

    Attributes:
        name: of the method: ``"policy"``, ``"fixed:6"``.
        moments: its decisions so far.
        nfe: spent so far.
        seconds: of wall-clock spent so far, the previews that only the page needs left out.
        picture: (H, W, 3) uint8 when finished.
        preference: of the finished picture.
        correct: whether an object detector finds exactly what the prompt asks for; ``None`` where it cannot say.
        reason: why not.
    """

    name: str
    moments: tuple[Moment, ...] = ()
    nfe: float = 0.0
    seconds: float = 0.0
    picture: np.ndarray | None = None
    preference: float = float("nan")
    correct: bool | None = None
    reason: str = ""


class Studio:
    """Makes takes with one policy on one model.

    Args:
        pipe: the policy with its model; it must be a learned one.

    Raises:
        ConfigError: for a method without learning.
    """

    def __init__(self, pipe: AdaptivePipeline) -> None:
        if not isinstance(pipe.method, LearnedMethod):
            raise ConfigError(
                f"the demo shows a trained policy, got {pipe.method.name!r}", "name a run's folder, or 'emoji'"
            )
        self.pipe = pipe
        self.method: LearnedMethod = pipe.method

    @property
    def traits(self) -> Traits:
        """Of the model."""
        return self.pipe.backbone.traits

    @property
    def highest_price(self) -> float:
        """The highest price of one NFE that the policy was trained at; 0 when it knows no price."""
        return self.method.config.highest_price if "price" in self.method.config.observation else 0.0

    def policy(self, prompt: Prompt, seed: int, price: float) -> Iterator[Take]:
        """The policy's picture: a take at each decision, at last the finished one.

        Raises:
            ConfigError: for a price that is negative or no number.
            PromptError: when the prompt does not fit the text window.
        """
        if not np.isfinite(price) or price < 0:
            raise ConfigError(f"The price must be 0 or more, got {price}.", "Move the slider.")
        method = replace(self.method, price=float(price) if self.highest_price else self.method.price)
        method.bind(self.pipe.backbone, self.pipe.scorers)
        yield from self._roll("policy", method, prompt, seed)

    def fixed(self, spec: str, prompt: Prompt, seed: int) -> Iterator[Take]:
        """The picture of a method without learning (``"fixed:6"``), in the same way."""
        method = make_method(spec)
        method.bind(self.pipe.backbone, self.pipe.scorers)
        yield from self._roll(spec, method, prompt, seed)

    def _roll(self, name: str, method: Any, prompt: Prompt, seed: int) -> Iterator[Take]:
        backbone = self.pipe.backbone
        process = method.process(self.pipe.process)
        engine = Engine(backbone, self.pipe.scorers, solver=process.solver)
        backbone.encode([prompt.text])  # cached: every method finds it done, and none pays for it
        lane, take = open_lane(backbone, process, prompt, seed), Take(name)
        before: Look | None = None
        picture: Picture | None = None
        decisions = 0
        while picture is None:
            began = time.perf_counter()
            request = Decide(lane, before)
            [action] = method.decide([request])
            deciding = time.perf_counter() - began
            if method.needs_preview or decisions * MOST_MOMENTS % process.steps < MOST_MOMENTS:
                moment = self._moment(method, request, action)
                take = replace(take, moments=(*take.moments, moment), nfe=lane.nfe)
                yield take
            before, decisions = lane.look, decisions + 1
            began = time.perf_counter()
            [(lane, picture)] = engine.run([turn(backbone, process, lane, action, method.needs_preview)])
            take = replace(take, seconds=take.seconds + deciding + time.perf_counter() - began, nfe=lane.nfe)
        yield self._finished(take, prompt, picture)

    def _moment(self, method: Any, request: Decide, action: int) -> Moment:
        lane: Lane = request.lane
        probabilities = method.probabilities([request])[0] if isinstance(method, LearnedMethod) else None
        preference = float("nan") if lane.look is None else float(lane.look.preference[0])
        return Moment(lane.step, lane.nfe, self._pixels(lane), action, probabilities, preference, lane.refine_mask)

    def _pixels(self, lane: Lane) -> np.ndarray:
        if lane.shown is not None:
            return lane.shown.pixels()
        return to_pixels(self.pipe.backbone.preview(lane.latents.x if lane.x0 is None else lane.x0)[0])

    def _finished(self, take: Take, prompt: Prompt, picture: Picture) -> Take:
        done = replace(take, picture=picture.pixels(), preference=float(picture.look.preference[0]))
        if self._judge is None or prompt.requirements is None:
            return done
        [verdict] = self._judge.verdicts(picture.image[None], [prompt])
        return replace(done, correct=verdict.correct, reason=verdict.reason)

    @cached_property
    def _judge(self) -> Any:
        """The first of the model's own held-out judges that gives verdicts, or ``None``."""
        kinds = (SCORERS.load(name) for name in self.traits.judges)
        kind = next((kind for kind in kinds if hasattr(kind, "verdicts")), None)
        return None if kind is None else kind.from_pretrained(device=self.pipe.backbone.device)


def comparators(nfe: float) -> tuple[str, ...]:
    """The fixed-step methods to show beside a picture that took so many evaluations: as many, and fifty.

    >>> comparators(4.5), comparators(0.5)
    (('fixed:5', 'fixed:50'), ('fixed:1', 'fixed:50'))
    """
    return f"fixed:{max(1, int(np.floor(nfe + 0.5)))}", REFERENCE

"""Oracle stop: exits early at every state of the schedule and keeps the best image. An upper bound for comparison."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.coroutines import act, finished
from addiffusion_env.engine.episode import Episode
from addiffusion_env.engine.lane import Begin
from addiffusion_env.engine.process import Action, ProcessConfig
from addiffusion_env.errors import unknown
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import BaseSampler, BilledEpisode, EpisodeCoroutine, every_step

SCORES = {"preference": "preference", "clip_score": "clip"}
"""Score that it may select by -> scorer that gives it. Claims are decided by judges, which it does not see."""


@dataclass(frozen=True)
class OracleStop(BaseSampler):
    """An oracle: tries every stop and keeps the one that a scorer rates best. A bound, not usable in practice.

    It runs the base schedule once, exits early from each state and also takes the schedule to its end, scores all
    finished images and keeps the best (the cheapest of ties). Its NFE, network calls and seconds include all of this
    work; the record's ``chosen_nfe`` and ``chosen_calls`` are the cost of a stop at the chosen state alone, which
    requires knowing that state in advance, and ``chosen_step`` is that state. Selecting among many images by a scorer
    inflates that score, so only other scorers can judge it.

    Attributes:
        score: what it selects by, one of :data:`SCORES`.
    """

    score: str = "preference"

    usage: ClassVar[str] = "oracle_stop:SCORE"
    example: ClassVar[tuple[str, str]] = ("emoji", "oracle_stop:clip_score")
    bound: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise unknown("score of oracle_stop", self.score, SCORES)

    @property
    def selects_by(self) -> tuple[str, ...]:  # type: ignore[override]
        """The scorer of its score."""
        return (SCORES[self.score],)

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The base process, one decision per step, without refinement."""
        return every_step(base)

    def coroutine(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> EpisodeCoroutine:
        """Every stop of one trajectory, and its end."""
        lane = yield Begin(process, prompt, seed)
        nfe, calls = 0.0, 0
        tried: list[Episode] = []
        while True:
            exited = lane
            if lane.remaining:
                exited = yield from act(backbone, process, lane, Action.STOP)
                nfe, calls = nfe + exited.nfe - lane.nfe, calls + exited.calls - lane.calls
            image = yield from finished(exited)
            exited = replace(exited, scores=image.scores)
            tried.append(Episode(exited, image))
            if not lane.remaining:
                break
            lane = yield from act(backbone, process, lane, Action.CONTINUE)
        best = min(tried, key=lambda one: (-float(getattr(one.image.scores, self.score)[0]), one.lane.nfe))
        chosen = best.lane
        costs = {
            "chosen_nfe": chosen.nfe,
            "chosen_calls": float(chosen.calls),
            "chosen_step": float(chosen.actions.count(Action.CONTINUE)),
        }
        return BilledEpisode(replace(chosen, nfe=nfe + lane.nfe, calls=calls + lane.calls), best.image, costs)

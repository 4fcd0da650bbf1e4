"""Finished episodes as records: what an image cost, how it was judged, and the last decision about it."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from addiffusion_env.agents.saved_policy import SavedPolicy
from addiffusion_env.backbones.fingerprint import digest_of
from addiffusion_env.engine.episode import Episode
from addiffusion_env.engine.lane import Decide, Request
from addiffusion_env.engine.observers import LastDecision, observed
from addiffusion_env.evaluation.judges import Judgement
from addiffusion_env.evaluation.plan import Job, Plan
from addiffusion_env.evaluation.records import Record
from addiffusion_env.samplers.base import EpisodeCoroutine


@dataclass(frozen=True)
class Finished:
    """A finished episode.

    Attributes:
        episode: the episode.
        last: the last decision of the attempt that was kept; ``None`` where nothing was decided.
    """

    episode: Episode
    last: Decide | None


def with_last_decision(coroutine: EpisodeCoroutine) -> Generator[Request, Any, Finished]:
    """A sampler's coroutine that also returns the last decision."""
    decisions = LastDecision()
    episode = yield from observed(coroutine, [decisions])
    return Finished(episode, decisions.of(episode))


def record_of(
    entry: Plan,
    job: Job,
    done: Finished,
    judgement: Judgement,
    backbone: str,
    seconds: float,
    peak_memory: int | None = None,
) -> Record:
    """The record of one finished episode.

    Args:
        entry: the plan of its sampler, whose process may have a calibrator.
        job: the image.
        done: the episode and its last decision; the policy's probabilities are computed here, outside of the seconds.
        judgement: of the held-out judges.
        backbone: its name.
        seconds: see :class:`.Record`.
        peak_memory: see :class:`.Record`.
    """
    lane, scores, last = done.episode.lane, done.episode.image.scores, done.last
    sampler = entry.sampler
    chances = sampler.probabilities([last])[0] if isinstance(sampler, SavedPolicy) and last is not None else None
    utility = entry.process.refine.utility
    return Record(
        uid=job.uid,
        variant=entry.variant,
        sampler=entry.sampler.name,
        backbone=backbone,
        prompt=job.prompt.text,
        prompt_id=job.prompt.prompt_id,
        task=job.prompt.task,
        constraints=job.prompt.constraints,
        seed=job.seed,
        nfe=float(lane.nfe),
        network_calls=int(lane.calls),
        decisions=len(lane.actions),
        actions=tuple(lane.actions),
        refinements=lane.refinements,
        preference=float(scores.preference[0]),
        clip_score=float(scores.clip_score[0]),
        correct=judgement.correct,
        reason=judgement.reason,
        extra=judgement.extra,
        seconds=seconds,
        peak_memory=peak_memory,
        identity=digest_of(entry.identity),
        last_step=None if last is None else int(last.lane.step),
        last_checked=None if last is None else last.lane.shown is not None,
        probabilities=None if chances is None else tuple(chances.tolist()),
        correctness=None if utility.calibrator is None else 1 / (1 + math.exp(-utility.at(scores))),
    )

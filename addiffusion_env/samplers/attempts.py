"""Helpers of samplers that make several attempts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from addiffusion_env.engine.episode import Episode


def preference_of(episode: Episode) -> float:
    """The preference score of the finished image, in standard deviations."""
    return float(episode.image.scores.preference[0])


def best_try(attempts: Sequence[Episode]) -> Episode:
    """The episode whose image scores best (the first of ties), with the summed cost of all episodes."""
    best = max(attempts, key=preference_of)
    nfe = sum(episode.lane.nfe for episode in attempts)
    calls = sum(episode.lane.calls for episode in attempts)
    return replace(best, lane=replace(best.lane, nfe=nfe, calls=calls))

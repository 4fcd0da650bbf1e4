"""What methods of several tries share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from addiffusion_env.engine.episode import Episode


def preference_of(episode: Episode) -> float:
    """The finished picture's preference, in standard deviations."""
    return float(episode.picture.look.preference[0])


def best_try(tries: Sequence[Episode]) -> Episode:
    """The episode whose picture scores best (the earliest of equals), charged with what all of them spent."""
    best = max(tries, key=preference_of)
    nfe = sum(episode.lane.nfe for episode in tries)
    calls = sum(episode.lane.calls for episode in tries)
    return replace(best, lane=replace(best.lane, nfe=nfe, calls=calls))

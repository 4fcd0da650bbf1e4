"""Reward-term traces: the reward of each decision of an episode, term by term."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from addiffusion_env.agents.learned import PolicySampler
from addiffusion_env.engine.episode import Episode
from addiffusion_env.engine.lane import Lane
from addiffusion_env.engine.observers import Decisions
from addiffusion_env.rewards import Reward, Transition, make_reward
from addiffusion_env.samplers.base import Sampler
from addiffusion_env.scorers.utility import ImageScoresBatch


def terms_of(sampler: Sampler, decisions: Decisions, episode: Episode) -> dict[str, tuple[float, ...]]:
    """Reward term -> its value for each action of a finished episode.

    Empty for a sampler that has no reward, or needs no previews: rewards are computed from preview scores.

    Args:
        sampler: the sampler of the episode.
        decisions: its recorded decisions.
        episode: the finished episode.
    """
    if not isinstance(sampler, PolicySampler) or not sampler.needs_preview:
        return {}
    reward = make_reward(sampler.config.environment.get("reward", "default"))
    return traced([*decisions.lanes_of(episode), episode.lane], reward, sampler.cost_per_nfe)


def traced(lanes: Sequence[Lane], reward: Reward, cost_per_nfe: float) -> dict[str, tuple[float, ...]]:
    """Reward term -> (D,) values of the D transitions between D + 1 lanes, the last of which has ended.

    Args:
        lanes: one at each decision, with its scores, and the finished one.
        reward: holds the terms.
        cost_per_nfe: cost of one NFE.
    """
    before, after = [lane.scores for lane in lanes[:-1]], [lane.scores for lane in lanes[1:]]
    moves = len(lanes) - 1
    # The prompt's embedding comes with the scores; a lane before its first evaluation has none.
    text = next(scores.clip_text for scores in reversed(after) if scores is not None)
    transition = Transition.of(
        ImageScoresBatch.of(before),
        ImageScoresBatch.of(after),
        clip_text=np.repeat(text, moves, axis=0),
        nfe=np.diff([lane.nfe for lane in lanes]),
        cost_per_nfe=np.full(moves, cost_per_nfe),
        action=np.array(lanes[-1].actions),
        terminal=np.arange(moves) == moves - 1,
    )
    _, parts = reward(transition)
    return {name: tuple(np.nan_to_num(values).tolist()) for name, values in parts.items() if np.any(values != 0)}

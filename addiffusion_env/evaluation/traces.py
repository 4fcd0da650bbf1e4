"""Reward-term traces: what each decision of an episode was paid, term by term, by the reward of the run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from addiffusion_env.agents.learned import LearnedMethod
from addiffusion_env.baselines.base import Method
from addiffusion_env.engine.episode import Episode
from addiffusion_env.engine.lane import Lane
from addiffusion_env.engine.observers import Decisions
from addiffusion_env.rewards import Reward, Transition, make_reward
from addiffusion_env.scorers.utility import LookBatch


def terms_of(method: Method, decisions: Decisions, episode: Episode) -> dict[str, tuple[float, ...]]:
    """Reward term -> what each action of a finished episode was paid.

    None for a method that has no reward, or needs no previews: rewards are paid by preview scores.

    Args:
        method: whose episode it was.
        decisions: kept of it.
        episode: as it ended.
    """
    if not isinstance(method, LearnedMethod) or not method.needs_preview:
        return {}
    reward = make_reward(method.config.environment.get("reward", "default"))
    return traced([*decisions.lanes_of(episode), episode.lane], reward, method.price)


def traced(lanes: Sequence[Lane], reward: Reward, price: float) -> dict[str, tuple[float, ...]]:
    """Reward term -> (D,) values of the D moves between D + 1 lanes, the last of which has ended.

    Args:
        lanes: one at each decision, each with its look, and the finished one.
        reward: whose terms.
        price: of one NFE.
    """
    before, after = [lane.look for lane in lanes[:-1]], [lane.look for lane in lanes[1:]]
    moves = len(lanes) - 1
    transition = Transition.of(
        LookBatch.of(before),
        LookBatch.of(after),
        clip_text=np.stack([look.clip_text[0] for look in after if look is not None]),
        nfe=np.diff([lane.nfe for lane in lanes]),
        price=np.full(moves, price),
        action=np.array(lanes[-1].actions),
        terminal=np.arange(moves) == moves - 1,
    )
    _, parts = reward(transition)
    return {name: tuple(np.nan_to_num(values).tolist()) for name, values in parts.items() if np.any(values != 0)}

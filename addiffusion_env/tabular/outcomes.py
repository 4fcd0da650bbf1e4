"""What a policy gets out of a table: every image's episode, played with the recorded attempts in their own order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from addiffusion_env.observations.features import Observer
from addiffusion_env.tabular.mdp import States, TabularMDP

Decider = Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray]
"""Observation and (B, 3) legal actions -> (B,) actions."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """One episode an image.

    Attributes:
        nfe: (P,) spent.
        calls: (P,) network calls.
        looks: (P,) previews that were looked at; the finished images come on top.
        finishes: (P,) finished images that were decoded and looked at.
        preference: (P,) of the image given.
        clip_score: (P,) of the image given.
        correct: (P,) the judge's verdict on it; NaN without one.
        actions: P tuples of actions.
    """

    nfe: np.ndarray
    calls: np.ndarray
    looks: np.ndarray
    finishes: np.ndarray
    preference: np.ndarray
    clip_score: np.ndarray
    correct: np.ndarray
    actions: tuple[tuple[int, ...], ...]


def play_table(mdp: TabularMDP, decide: Decider, observer: Observer, cost_per_nfe: float) -> Outcomes:
    """Plays every image of a table once, exactly as the engine would.

    Args:
        mdp: the decision process on the table.
        decide: the policy.
        observer: makes its observations.
        cost_per_nfe: of one NFE, shown to the policy.
    """
    table, size = mdp.table, len(mdp.table)
    everyone = np.arange(size)
    order = np.tile(np.arange(table.attempts), (size, 1))
    states = States.start(everyone, order, np.full(size, float(cost_per_nfe)))
    going = np.ones(size, dtype=bool)
    looks, finishes = np.zeros(size), np.zeros(size)
    image = np.zeros((size, 2), dtype=int)
    actions: list[list[int]] = [[] for _ in range(size)]
    while going.any():
        chosen = decide(observer.observe(mdp.frame(states)), mdp.masks(states))
        # Lanes that have ended stand still: what they would do is taken back.
        step = mdp.step(states, np.where(going, chosen, 1))
        for lane in np.flatnonzero(going):
            actions[lane].append(int(chosen[lane]))
        new = (step.states.place != states.place) | (step.states.attempt != states.attempt)
        made = step.states.place >= table.finish
        looks += going & new & ~made
        finishes += going & new & made
        ended = going & step.ended
        image[ended] = step.image[ended]
        states = states.merged(step.states, going)
        going &= ~step.ended
    at = (everyone, image[:, 0], image[:, 1])
    return Outcomes(
        nfe=mdp.nfe(states),
        calls=mdp.network_calls(states),
        looks=looks,
        finishes=finishes,
        preference=table.preference[at],
        clip_score=table.clip_score[at],
        correct=table.correct[at],
        actions=tuple(tuple(row) for row in actions),
    )

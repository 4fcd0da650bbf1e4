"""Outcomes of a policy on a table: one episode per image, with the attempts in the order of their recording."""

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
    """The outcomes of one episode per image.

    Attributes:
        nfe: (P,) NFE spent.
        calls: (P,) network calls.
        looks: (P,) number of previews scored, without finished images.
        finishes: (P,) number of finished images decoded and scored.
        preference: (P,) preference score of the returned image.
        clip_score: (P,) CLIP score of the returned image.
        correct: (P,) the judge's verdict on it; NaN without one.
        actions: P tuples of actions.
        image: (P, 2) attempt and place of the returned image.
    """

    nfe: np.ndarray
    calls: np.ndarray
    looks: np.ndarray
    finishes: np.ndarray
    preference: np.ndarray
    clip_score: np.ndarray
    correct: np.ndarray
    actions: tuple[tuple[int, ...], ...]
    image: np.ndarray


def play_table(mdp: TabularMDP, decide: Decider, observer: Observer, cost_per_nfe: float) -> Outcomes:
    """Runs one episode of a policy per image of a table, with the same results as the engine.

    Args:
        mdp: the decision process on the table.
        decide: the policy.
        observer: computes its observations.
        cost_per_nfe: the cost per NFE, shown to the policy.
    """
    return play(mdp, lambda states: decide(observer.observe(mdp.frame(states)), mdp.masks(states)), cost_per_nfe)


def play(mdp: TabularMDP, choose: Callable[[States], np.ndarray], cost_per_nfe: float) -> Outcomes:
    """Runs one episode per image of a table.

    Args:
        mdp: the decision process on the table.
        choose: states -> (B,) legal actions.
        cost_per_nfe: the cost per NFE of the states.
    """
    table, size = mdp.table, len(mdp.table)
    rows = np.arange(size)
    order = np.tile(np.arange(table.attempts), (size, 1))
    states = States.start(rows, order, np.full(size, float(cost_per_nfe)))
    running = np.ones(size, dtype=bool)
    looks, finishes = np.zeros(size), np.zeros(size)
    image = np.zeros((size, 2), dtype=int)
    actions: list[list[int]] = [[] for _ in range(size)]
    while running.any():
        chosen = choose(states)
        # Ended lanes are stepped as well, and their results discarded.
        step = mdp.step(states, np.where(running, chosen, 1))
        for lane in np.flatnonzero(running):
            actions[lane].append(int(chosen[lane]))
        new = (step.states.place != states.place) | (step.states.attempt != states.attempt)
        finished = step.states.place >= table.finish
        looks += running & new & ~finished
        finishes += running & new & finished
        ended = running & step.ended
        image[ended] = step.image[ended]
        states = states.merged(step.states, running)
        running &= ~step.ended
    at = (rows, image[:, 0], image[:, 1])
    return Outcomes(
        nfe=mdp.nfe(states),
        calls=mdp.network_calls(states),
        looks=looks,
        finishes=finishes,
        preference=table.preference[at],
        clip_score=table.clip_score[at],
        correct=table.correct[at],
        actions=tuple(tuple(row) for row in actions),
        image=image,
    )

"""Outcomes of a policy on a table, and its regret.

An episode is played per image, with the attempts in the order of their recording. Regret compares the policy's return
with the best constant behaviour and with an oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from addiffusion_env.observations.features import Observer
from addiffusion_env.rewards import Reward, Transition
from addiffusion_env.scorers.image_scores import ImageScores, ImageScoresBatch
from addiffusion_env.tabular.mdp import States, TabularMDP
from addiffusion_env.tabular.table import AttemptTable

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


@dataclass(frozen=True)
class Regret:
    """Mean utilities, where utility is the value of the returned image minus the cost of the NFE spent.

    Attributes:
        cost_per_nfe: the cost per NFE.
        utility: mean utility of the policy.
        best_constant: description of the best constant behaviour, chosen in hindsight on the same images.
        constant_utility: mean utility of the best constant behaviour.
        oracle_utility: mean utility of an oracle that knows all images in advance.
        oracle_nfe: mean NFE of the oracle.
    """

    cost_per_nfe: float
    utility: float
    best_constant: str
    constant_utility: float
    oracle_utility: float
    oracle_nfe: float

    @property
    def to_constant(self) -> float:
        """Regret relative to the best constant behaviour; negative if the policy is better."""
        return self.constant_utility - self.utility

    @property
    def to_oracle(self) -> float:
        """Regret relative to the oracle; negative only through images that the oracle does not consider."""
        return self.oracle_utility - self.utility


def regret_of(
    utility: np.ndarray, constants: Mapping[str, np.ndarray], oracle: tuple[np.ndarray, np.ndarray], cost_per_nfe: float
) -> Regret:
    """Computes the regret from the utilities of each image.

    Args:
        utility: (P,) utilities of the policy.
        constants: name -> (P,) utilities of a constant behaviour; at least one.
        oracle: (P,) utilities and (P,) NFE of the oracle.
        cost_per_nfe: the cost per NFE, already subtracted from the utilities.
    """
    means = {name: float(values.mean()) for name, values in constants.items()}
    best = max(means, key=means.__getitem__)
    return Regret(
        cost_per_nfe, float(utility.mean()), best, means[best], float(oracle[0].mean()), float(oracle[1].mean())
    )


def worth(reward: Reward, preference: np.ndarray, clip_score: np.ndarray, clip_text: np.ndarray) -> np.ndarray:
    """Terminal reward, without costs, of images with (P, ...) scores and (P, D) prompt embeddings."""
    flat = np.asarray(preference, dtype=np.float64).reshape(-1)
    known, zero = np.isfinite(flat), np.zeros(len(flat))
    none = np.zeros((len(flat), 0))
    clip, liked = (np.where(known, np.asarray(values, np.float64).reshape(-1), 0.0) for values in (clip_score, flat))
    scores = ImageScores(none, none, clip, liked, none)
    transition = Transition.of(
        ImageScoresBatch(scores, zero > 0),
        ImageScoresBatch(scores, zero == 0),
        clip_text=np.repeat(clip_text, len(flat) // len(clip_text), axis=0),
        nfe=zero,
        cost_per_nfe=zero,
        action=np.ones(len(flat), int),
        terminal=np.ones(len(flat), bool),
    )
    total, _ = reward(transition)
    return np.where(known, total, -np.inf).reshape(np.shape(preference))


def regret(table: AttemptTable, outcomes: Outcomes, reward: Reward, cost_per_nfe: float) -> Regret:
    """Compares a policy's outcomes on a table with the constant behaviours and the oracle, by the reward's values."""
    values = worth(reward, table.preference, table.clip_score, table.clip_text)
    gained = worth(reward, outcomes.preference, outcomes.clip_score, table.clip_text) - cost_per_nfe * outcomes.nfe
    return regret_of(
        gained, constant_utilities(table, values, cost_per_nfe), oracle(table, values, cost_per_nfe), cost_per_nfe
    )


def oracle(table: AttemptTable, values: np.ndarray, cost_per_nfe: float) -> tuple[np.ndarray, np.ndarray]:
    """(P,) utility and (P,) NFE of an oracle that knows all (P, T, Q) values.

    It goes straight to the best image, abandoning each attempt before it at the cheapest place: the first decision, or
    an early exit before the first evaluation.
    """
    finished = slice(table.finish, None)
    first = np.nan_to_num(np.fmin(table.nfe[:, :, 0], table.nfe[:, :, -1]))
    dropped = np.cumsum(first, axis=1) - first
    spent = (np.nan_to_num(table.nfe[:, :, finished]) + dropped[:, :, None]).reshape(len(table), -1)
    utility = values[:, :, finished].reshape(len(table), -1) - cost_per_nfe * spent
    pick = utility.argmax(1)
    rows = np.arange(len(table))
    return utility[rows, pick], spent[rows, pick]


def constant_utilities(table: AttemptTable, values: np.ndarray, cost_per_nfe: float) -> dict[str, np.ndarray]:
    """Description -> (P,) utility of always finishing at the same place, with the best of n attempts, for each n."""
    found = {}
    for place in range(table.finish, values.shape[2]):
        step = place - table.finish - 1
        where = "at the end" if step < 0 else f"by a stop at step {(*table.steps, 0)[step]}"
        for attempts in range(1, table.attempts + 1):
            images, spent = values[:, :attempts, place], table.nfe[:, :attempts, place]
            if np.isfinite(images).all():
                found[f"best of {attempts} {where}"] = images.max(1) - cost_per_nfe * spent.sum(1)
    return found

"""Rules without learning, on a table of attempts: exit early, check the finished image, attempt it again.

They are the comparators that only learning can beat, and the start of learning (:mod:`agents.imitation`). Their
thresholds are chosen by the calibrated probability of recorded images, without any judge's verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from addiffusion_env.engine.process import Action
from addiffusion_env.tabular.mdp import States, TabularMDP
from addiffusion_env.tabular.outcomes import Outcomes, play
from addiffusion_env.tabular.transitions import START


@dataclass(frozen=True)
class Rule:
    """Attempts until one is good enough; the finished image of the highest utility is returned.

    Attributes:
        threshold: utility from which a finished image is accepted; ``inf`` is best-of-n.
        attempts: most attempts, of which the last one's image ends the episode.
        early: how many of the first attempts exit early.
        exit_step: step of the schedule from which those exit early; 0 is before the first evaluation.
        abandon: utility of a preview below which an attempt is abandoned; ``-inf`` reads no preview.
    """

    threshold: float
    attempts: int
    early: int = 0
    exit_step: int = 0
    abandon: float = -np.inf

    def __call__(self, mdp: TabularMDP, states: States) -> np.ndarray:
        """(B,) legal actions."""
        table, place = mdp.table, states.place
        step = np.where(place == START, 0, np.array([*table.steps, 0])[np.minimum(place, table.finish)])
        finished, value = place >= table.finish, mdp.utility_here(states)
        exits = ~finished & (step >= self.exit_step) & (states.attempt < self.early)
        wrong = np.where(finished, value < self.threshold, (place != START) & ~exits & (value < self.abandon))
        again = wrong & (states.attempt + 1 < self.attempts)
        wanted = np.where(again, Action.REFINE, np.where(exits | finished, Action.STOP, Action.CONTINUE))
        legal = mdp.masks(states)
        instead = np.where(legal[:, Action.CONTINUE], Action.CONTINUE, Action.STOP)
        return np.where(legal[np.arange(len(states)), wanted], wanted, instead)


def rules_of(mdp: TabularMDP, thresholds: Iterable[float], abandon: Iterable[float] = ()) -> Iterator[Rule]:
    """The family of rules on a process: each number of attempts, of early exits among them, and place of these.

    Args:
        mdp: the decision process on a table.
        thresholds: of finished images; ``inf``, best-of-n, is always included.
        abandon: thresholds of previews; none reads no preview.
    """
    most = len(mdp.transitions.legal)
    for attempts in range(1, most + 1):
        early = [(0, 0), *product(range(1, attempts + 1), (0, *mdp.table.steps))]
        for (count, step), preview in product(early, (-np.inf, *abandon)):
            for threshold in (*thresholds, np.inf) if attempts > 1 else (np.inf,):
                yield Rule(float(threshold), attempts, count, step, preview)


def thresholds_of(mdp: TabularMDP, count: int = 24) -> np.ndarray:
    """Up to ``count`` thresholds for :func:`rules_of`: quantiles of the utility of the table's finished images.

    The utility is bounded, so several quantiles can be its bound.
    """
    values = mdp.utilities[:, :, mdp.table.finish :]
    finished = values[np.isfinite(mdp.table.preference[:, :, mdp.table.finish :])]
    return np.unique(np.quantile(finished, np.linspace(0, 0.95, count)))


@dataclass(frozen=True, eq=False)
class RuleOutcomes:
    """What a rule gave on a table.

    Attributes:
        rule: the rule.
        outcomes: one episode per image.
        probability: (P,) calibrated probability that the returned image is correct (the utility through a sigmoid).
    """

    rule: Rule
    outcomes: Outcomes
    probability: np.ndarray

    @property
    def nfe(self) -> float:
        """Mean NFE."""
        return float(self.outcomes.nfe.mean())

    @property
    def mean_probability(self) -> float:
        """Mean calibrated probability."""
        return float(self.probability.mean())


def play_rule(mdp: TabularMDP, rule: Rule) -> RuleOutcomes:
    """One episode of a rule per image of the table."""
    outcomes = play(mdp, lambda states: rule(mdp, states), 0.0)
    value = mdp.utility(outcomes.preference, outcomes.clip_score, mdp.table.clip_text)
    return RuleOutcomes(rule, outcomes, 1 / (1 + np.exp(-value)))


def best_rule(played: Sequence[RuleOutcomes], cost_per_nfe: float) -> RuleOutcomes:
    """The one of the highest mean probability minus cost; the cheapest of ties."""
    return max(played, key=lambda one: (one.mean_probability - cost_per_nfe * one.nfe, -one.nfe))


def frontier(played: Sequence[RuleOutcomes]) -> list[RuleOutcomes]:
    """Those that no other one beats in both NFE and probability, by increasing NFE."""
    kept: list[RuleOutcomes] = []
    for one in sorted(played, key=lambda one: (one.nfe, -one.mean_probability)):
        if not kept or one.mean_probability > kept[-1].mean_probability:
            kept.append(one)
    return kept

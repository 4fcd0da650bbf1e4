"""Rules on a table of attempts: what each spends and returns, and the best ones.

They are the comparators that only learning can beat, and the start of learning (:mod:`agents.imitation`). Their
thresholds are chosen by the calibrated probability of recorded images, without any judge's verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Annotated, Any, TypeVar

import numpy as np

from addiffusion_env.samplers.checked_attempts import Rule
from addiffusion_env.settings import Gt
from addiffusion_env.tabular.mdp import START, States, TabularMDP
from addiffusion_env.tabular.outcomes import Outcomes, play


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
    """At most ``count`` different thresholds for :func:`rules_of`: quantiles of the utility of finished images."""
    values = mdp.utilities[:, :, mdp.table.finish :]
    known = values[np.isfinite(mdp.table.preference[:, :, mdp.table.finish :])]
    return np.unique(np.quantile(known, np.linspace(0, 0.95, count)))


def rule_actions(rule: Rule, mdp: TabularMDP, states: States) -> np.ndarray:
    """(B,) legal actions of a rule; where it wants an illegal one, the attempt goes on."""
    table, place = mdp.table, states.place
    step = np.where(place == START, 0, np.array([*table.steps, 0])[np.minimum(place, table.finish)])
    value = np.where(place == START, np.nan, mdp.utility_here(states))
    return mdp.legalised(states, rule.actions(step, states.attempt, place >= table.finish, value))


@dataclass(frozen=True)
class MeasuredRule(Rule):
    """A rule and what it was measured to spend; its thresholds are log-odds of a correct image, as of a calibrator.

    Attributes:
        nfe: mean NFE on recorded attempts.
        probability: mean calibrated probability of the images that it returned there; ``None`` where no image was
            scored.
    """

    nfe: Annotated[float, Gt(0)] = field(kw_only=True)
    probability: float | None = field(kw_only=True, default=None)

    @property
    def mean_probability(self) -> float:
        """The probability; 0 where no image was scored."""
        return self.probability or 0.0

    def entry(self) -> dict[str, Any]:
        """As JSON; infinite thresholds, which are the defaults, are left out."""
        return {name: value for name, value in asdict(self).items() if value is None or np.isfinite(value)}


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

    def measured(self) -> MeasuredRule:
        """The rule with its means."""
        return MeasuredRule(**asdict(self.rule), nfe=self.nfe, probability=self.mean_probability)


def play_rule(mdp: TabularMDP, rule: Rule) -> RuleOutcomes:
    """One episode of a rule per image of the table."""
    outcomes = play(mdp, lambda states: rule_actions(rule, mdp, states), 0.0)
    value = mdp.utilities[np.arange(len(mdp.table)), outcomes.image[:, 0], outcomes.image[:, 1]]
    return RuleOutcomes(rule, outcomes, 1 / (1 + np.exp(-value)))


M = TypeVar("M", MeasuredRule, RuleOutcomes)


def best_rule(played: Sequence[M], cost_per_nfe: float) -> M:
    """The one of the highest mean probability minus cost; the cheapest of ties."""
    return max(played, key=lambda one: (one.mean_probability - cost_per_nfe * one.nfe, -one.nfe))


def frontier(played: Sequence[M]) -> list[M]:
    """Those that no other one beats in both NFE and probability, by increasing NFE."""
    kept: list[M] = []
    for one in sorted(played, key=lambda one: (one.nfe, -one.mean_probability)):
        if not kept or one.mean_probability > kept[-1].mean_probability:
            kept.append(one)
    return kept


def costs_of(best: Sequence[M]) -> list[float]:
    """For each rule of an upper hull, by increasing NFE, a cost per NFE at which it is best: the middle of its range.

    The most expensive rule is best from 0, the cheapest at any cost above its range's lower end; half as much more is
    taken for it.
    """
    reached, spent = ([getattr(one, name) for one in best] for name in ("mean_probability", "nfe"))
    slopes: list[float] = (np.diff(reached) / np.diff(spent)).tolist()
    if not slopes:
        return [0.0]
    above = [1.5 * slopes[0], *slopes]
    below = [*slopes, 0.0]
    return [(low + high) / 2 for low, high in zip(below, above, strict=True)]

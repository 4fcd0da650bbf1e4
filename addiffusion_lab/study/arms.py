"""Arms of the comparison: what each method gave and spent on every test prompt, whatever it was computed from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from addiffusion_env.evaluation.frontier import along, upper_hull
from addiffusion_env.evaluation.statistics import Interval, bootstrap_p
from addiffusion_env.tabular.mdp import TabularMDP
from addiffusion_env.tabular.outcomes import Outcomes
from addiffusion_lab.study.tries import Tries

CHUNK = 250


@dataclass(frozen=True, eq=False)
class Arm:
    """One method on P prompts.

    Attributes:
        name: as tables show it.
        correct: (P,) 0 or 1.
        nfe: (P,).
        calls: (P,) network calls.
        looks: (P,) previews decoded and scored.
        finishes: (P,) pictures decoded in full.
        scored: whether finished pictures are scored too.
    """

    name: str
    correct: np.ndarray
    nfe: np.ndarray
    calls: np.ndarray
    looks: np.ndarray
    finishes: np.ndarray
    scored: bool = True


@dataclass(frozen=True)
class Clock:
    """Milliseconds of each part, a picture, at 16 lanes; measured side by side (:mod:`.timing`).

    Attributes:
        call: of a network call.
        look: of a preview, decoded and scored.
        decode: of a full decode.
        score: of scoring a finished picture.
    """

    call: float
    look: float
    decode: float
    score: float

    def seconds(self, arm: Arm) -> np.ndarray:
        """(P,) what an arm takes."""
        finish = self.decode + (self.score if arm.scored else 0.0)
        return (self.call * arm.calls + self.look * arm.looks + finish * arm.finishes) / 1000


def distinct(arms: Iterable[Arm]) -> list[Arm]:
    """Every arm once, in order: families share some, such as the single try that best-of-n begins with.

    Raises:
        ValueError: for two different arms of one name.
    """
    found: dict[str, Arm] = {}
    for arm in arms:
        other = found.setdefault(arm.name, arm)
        if not (np.array_equal(arm.correct, other.correct) and np.array_equal(arm.nfe, other.nfe)):
            raise ValueError(f"two different arms are named {arm.name!r}")
    return list(found.values())


def fixed(tries: Tries) -> Arm:
    """The first try alone."""
    return _arm(f"fixed:{tries.steps}", tries.correct[:, 0], tries.steps, 1, scored=False)


def best_of(tries: Tries, count: int, liked: np.ndarray, label: str) -> Arm:
    """The best-liked, by (P, T) ``liked``, of the first ``count`` tries."""
    liked = liked[:, :count]
    picked = tries.correct[np.arange(len(liked)), liked.argmax(1)]
    return _arm(f"best_of:{count}x{tries.steps}{label}", picked, count * tries.steps, count)


def retry(tries: Tries, threshold: float, liked: np.ndarray, label: str) -> Arm:
    """Threshold-retry: tries until one is liked, by (P, T) ``liked``; the best of them."""
    missing = np.isnan(liked)
    enough = np.where(missing, False, liked >= threshold)
    made = np.where(enough.any(1), enough.argmax(1) + 1, liked.shape[1])
    place = np.arange(liked.shape[1])[None]
    shown = np.where((place < made[:, None]) & ~missing, liked, -np.inf)
    picked = tries.correct[np.arange(len(liked)), shown.argmax(1)]
    return _arm(f"threshold_retry:{threshold:g}{label}", picked, made * tries.steps, made)


def prompt_rule(coloured: Tries, plain: Tries, colour: np.ndarray) -> Arm:
    """More steps for prompts with a colour word."""
    correct = np.where(colour, coloured.correct[:, 0], plain.correct[:, 0])
    spent = np.where(colour, coloured.steps, plain.steps)
    return _arm(f"prompt_rule:{coloured.steps},{plain.steps}", correct, spent, 1, scored=False)


def _arm(
    name: str, correct: np.ndarray, nfe: np.ndarray | float, finishes: np.ndarray | float, scored: bool = True
) -> Arm:
    shape = np.zeros(len(correct))
    return Arm(name, correct, shape + nfe, shape + 2 * np.asarray(nfe), shape, shape + finishes, scored)


def played(name: str, outcomes: Outcomes) -> Arm:
    """A policy's outcomes on the table."""
    return Arm(name, outcomes.correct, outcomes.nfe, outcomes.calls, outcomes.looks, outcomes.finishes)


def own_tries(mdp: TabularMDP) -> Tries:
    """The process's own tries, each taken to the schedule's end, as tries of a method without learning."""
    table, end = mdp.table, mdp.table.finish
    return Tries(0, table.preference[:, :, end], table.clip_score[:, :, end], table.correct[:, :, end])


@dataclass(frozen=True)
class Gain:
    """One family of arms against another at a cost.

    Attributes:
        at: the cost.
        gain: difference in the share of correct pictures, with a paired bootstrap interval over prompts.
        p: two-sided.
        ours: the first family's share there.
        theirs: the second family's share there.
    """

    at: float
    gain: Interval
    p: float
    ours: float
    theirs: float


def gains(
    ours: Sequence[Arm],
    theirs: Sequence[Arm],
    costs: Mapping[str, np.ndarray],
    at: Sequence[float],
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = 5000,
) -> list[Gain]:
    """Compares two families at equal mean cost.

    Our arms are joined by straight lines in the order of their cost: a random mixture of two settings lies on the
    line. Theirs are taken on their upper hull, chosen on these very prompts, which favours them. Beyond a family's
    dearest arm more cost buys nothing; below its cheapest, that arm is counted at the lower cost.

    Args:
        ours: arms of the first family.
        theirs: of the second.
        costs: arm name -> (P,) cost.
        at: mean costs to compare at.
        rng: draws the resamples of prompts.
        level: of the intervals.
        resamples: how many.
    """
    q = [np.stack([arm.correct for arm in family]) for family in (ours, theirs)]
    c = [np.stack([costs[arm.name] for arm in family]) for family in (ours, theirs)]
    hull = upper_hull(c[1].mean(1), q[1].mean(1))
    q[1], c[1] = q[1][hull], c[1][hull]
    prompts = q[0].shape[1]
    spots = np.asarray(at, dtype=np.float64)

    def lines(weights: np.ndarray) -> list[np.ndarray]:
        """(R, len(at)) of each family, prompts weighted."""
        return [
            np.stack([along(weights @ cost.T, weights @ quality.T, np.full(len(weights), spot)) for spot in spots], 1)
            for quality, cost in zip(q, c, strict=True)
        ]

    centre = lines(np.full((1, prompts), 1 / prompts))
    draws = []
    for first in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - first)
        mine, yours = lines(rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=size) / prompts)
        draws.append(mine - yours)
    drawn = np.concatenate(draws)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [
        Gain(
            float(spot),
            Interval(float(centre[0][0, i] - centre[1][0, i]), float(low[i]), float(high[i]), level, prompts),
            bootstrap_p(drawn[:, i]),
            float(centre[0][0, i]),
            float(centre[1][0, i]),
        )
        for i, spot in enumerate(spots)
    ]

"""The frontier of constant methods, and what a method gains over it at the same mean NFE.

Two constant methods, mixed at random over prompts, make a constant method at any cost between theirs. So a method is
held against the line between its neighbours on the upper hull of (mean cost, mean quality): the strongest mixture
there is. The hull is chosen on the very prompts it is judged on, which favours the constant methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from addiffusion_env.evaluation.records import Record
from addiffusion_env.evaluation.statistics import Interval, bootstrap_p
from addiffusion_env.evaluation.tables import common, per_prompt

_CHUNK = 250  # resamples at once: bounds memory at chunk x prompts


@dataclass(frozen=True)
class FrontierGain:
    """A method against the frontier at its own mean cost.

    Attributes:
        gain: mean quality above the frontier, with a paired bootstrap interval that also resamples both costs.
        cost: the method's mean cost.
        frontier: the frontier's quality at that cost.
        between: the two hull methods of the mixture (the same twice beyond an end).
        covered: whether the frontier reaches this cost; beyond its ends its end point is used.
        p: two-sided bootstrap p of the null hypothesis that the gain is 0.
    """

    gain: Interval
    cost: float
    frontier: float
    between: tuple[str, str]
    covered: bool
    p: float


def upper_hull(cost: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Indices of the points on the upper hull from the cheapest to the best, by rising cost.

    >>> upper_hull(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 0.2, 0.9, 0.8])).tolist()
    [0, 2]
    """
    hull: list[int] = []
    for index in np.lexsort((-quality, cost)):
        if hull and (quality[index] <= quality[hull[-1]] or cost[index] == cost[hull[-1]]):
            continue
        while len(hull) > 1 and _turns_up(hull[-2], hull[-1], index, cost, quality):
            hull.pop()
        hull.append(int(index))
    return np.array(hull)


def _turns_up(a: int, b: int, c: int, x: np.ndarray, y: np.ndarray) -> bool:
    return bool((y[b] - y[a]) * (x[c] - x[a]) <= (y[c] - y[a]) * (x[b] - x[a]))


def gain_over(
    method: Sequence[Record],
    constants: Mapping[str, Sequence[Record]],
    quality: str,
    rng: np.random.Generator,
    cost: str = "nfe",
    level: float = 0.95,
    resamples: int = 5000,
) -> FrontierGain | None:
    """A method's quality above the frontier of constant methods at equal mean cost.

    Args:
        method: its records.
        constants: name -> records of the constant methods.
        quality: the measure to compare (``"correct"``).
        rng: draws the resamples.
        cost: the measure to equalise (``"nfe"`` or ``"seconds"``).
        level: confidence.
        resamples: of prompts.

    Returns:
        ``None`` when there are no constant methods or no common prompts with a known quality.
    """
    names = list(constants)
    groups = common([method, *(constants[name] for name in names)])
    qualities, costs = _matrix(groups, quality), _matrix(groups, cost)
    known = np.isfinite(qualities).all(0) & np.isfinite(costs).all(0)
    if not names or not known.any():
        return None
    qualities, costs = qualities[:, known], costs[:, known]
    means_q, means_c = qualities.mean(1), costs.mean(1)
    hull = 1 + upper_hull(means_c[1:], means_q[1:])
    below = float(along(means_c[None, hull], means_q[None, hull], means_c[:1])[0])
    gains = np.concatenate([_gains(hull, qualities, costs, rng, n) for n in _chunks(resamples)])
    low, high = np.quantile(gains, [(1 - level) / 2, (1 + level) / 2])
    interval = Interval(float(means_q[0] - below), float(low), float(high), level, int(known.sum()))
    place = float(np.interp(means_c[0], means_c[hull], np.arange(len(hull))))
    between = (names[hull[int(np.floor(place))] - 1], names[hull[int(np.ceil(place))] - 1])
    inside = bool(means_c[1:].min() <= means_c[0] <= means_c[1:].max())
    return FrontierGain(interval, float(means_c[0]), below, between, inside, bootstrap_p(gains))


def _matrix(groups: Sequence[Sequence[Record]], name: str) -> np.ndarray:
    """(methods, prompts), NaN where unknown."""
    columns = [per_prompt(group, name) for group in groups]
    keys = sorted({record.prompt_id for group in groups for record in group})
    return np.array([[values.get(key, np.nan) for key in keys] for values in columns])


def along(cost: np.ndarray, quality: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Quality on the line through each row's points at that row's cost. Beyond its last point, more cost buys nothing.

    Args:
        cost: (R, K) of the points of each row, in any order.
        quality: (R, K) of the same points.
        at: (R,) costs.

    Returns:
        (R,) ``np.interp`` of every row.

    >>> along(np.array([[4.0, 8.0]]), np.array([[0.5, 0.9]]), np.array([6.0])).round(3).tolist()
    [0.7]
    """
    order = np.argsort(cost, axis=1, kind="stable")
    cost, quality = np.take_along_axis(cost, order, 1), np.take_along_axis(quality, order, 1)
    right = np.clip((cost < at[:, None]).sum(1), 1, cost.shape[1] - 1) if cost.shape[1] > 1 else np.zeros(len(at), int)
    rows, left = np.arange(len(at)), np.maximum(right - 1, 0)
    width = cost[rows, right] - cost[rows, left]
    share = np.clip((at - cost[rows, left]) / np.where(width > 0, width, 1.0), 0.0, 1.0)
    return quality[rows, left] + share * (quality[rows, right] - quality[rows, left])


def _gains(
    hull: np.ndarray, qualities: np.ndarray, costs: np.ndarray, rng: np.random.Generator, resamples: int
) -> np.ndarray:
    prompts = qualities.shape[1]
    counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples) / prompts
    drawn_q, drawn_c = counts @ qualities.T, counts @ costs.T
    return drawn_q[:, 0] - along(drawn_c[:, hull], drawn_q[:, hull], drawn_c[:, 0])


def _chunks(total: int) -> list[int]:
    return [min(_CHUNK, total - first) for first in range(0, total, _CHUNK)]

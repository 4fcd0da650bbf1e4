"""Landing: what *stop* does. The rest of the way is re-spaced into m evaluations that end at the final noise level.

Stopping a long schedule early and returning the predicted x0 gives the conditional mean: blurred, and worse than a
short schedule of the same cost, which spends its steps down to the end. So a stop buys m more evaluations, spaced
evenly over what is left. m = 0 is the bare jump, kept as an ablation.
"""

from __future__ import annotations

import math

import numpy as np

from addiffusion_env.errors import ConfigError

AUTO_LANDING_STEPS = 6
"""``landing_steps="auto"`` makes no step longer than a six-step schedule would; see :func:`landing_evaluations`."""


def landing_evaluations(landing_steps: int | str, position: float, remaining: int) -> int:
    """How many evaluations a stop spends.

    Args:
        landing_steps: a number, or ``"auto"``: enough that no landing step is longer than that of a schedule of
            :data:`AUTO_LANDING_STEPS` steps, and never more than simply going on would cost.
        position: where the lane is, 1 at the start and 0 at the end, in units of the schedule's own time.
        remaining: how many steps the schedule has left.

    Returns:
        A number in [0, remaining].

    Raises:
        ConfigError: for a negative number or another word.
    """
    if isinstance(landing_steps, str):
        if landing_steps != "auto":
            raise ConfigError(
                f"landing_steps must be a number or 'auto', got {landing_steps!r}", "use 0, 1, 2 ... or 'auto'"
            )
        return min(remaining, max(1, math.ceil(position * AUTO_LANDING_STEPS - 1e-6)))
    if isinstance(landing_steps, bool) or landing_steps < 0:
        raise ConfigError(f"landing_steps must be 0 or more, got {landing_steps!r}", "use 0, 1, 2 ... or 'auto'")
    return min(int(landing_steps), remaining)


def respace(rest: np.ndarray, evaluations: int, positions: np.ndarray | None = None) -> np.ndarray:
    """Re-spaces the rest of a schedule into fewer steps, evenly in the model's own time.

    Args:
        rest: (r + 1,) noise levels from where the lane is to the end, falling.
        evaluations: m, from 0 to r.
        positions: (r + 1,) the model's time at each of ``rest``, falling to 0; ``None`` takes the schedule's index.

    Returns:
        (m + 1,) noise levels with the same first and last entries; for m = 0 the first alone. Between grid points
        sigma is interpolated log-linearly (a last level of 0 counts as its predecessor's continuation).

    >>> respace(np.array([8.0, 4.0, 2.0, 1.0, 0.0]), 2).tolist()
    [8.0, 2.0, 0.0]
    """
    remaining = len(rest) - 1
    if not 0 <= evaluations <= remaining:
        raise ConfigError(
            f"cannot land in {evaluations} evaluations with {remaining} steps left", f"use 0 to {remaining}"
        )
    if evaluations == 0:
        return rest[:1].copy()
    time = np.arange(remaining, -1, -1.0) if positions is None else np.asarray(positions, dtype=np.float64)
    places = np.linspace(time[0], time[-1], evaluations + 1)
    # log(0) has no place on a line: extend the last positive gap by one step, then put the true end back.
    positive = np.where(rest > 0, rest, rest[-2] ** 2 / rest[-3] if remaining > 1 else rest[0] / 2)
    grid = np.exp(np.interp(places, time[::-1], np.log(positive)[::-1]))  # np.interp wants rising places
    grid[0], grid[-1] = rest[0], rest[-1]
    return grid

"""What the finished picture is worth."""

from __future__ import annotations

import numpy as np

from addiffusion_env.rewards.base import Transition
from addiffusion_env.rewards.normalisation import PooledScale


def terminal_bonus(
    transition: Transition, scale: PooledScale, centre: float = 0.0, width: float = 0.0, relative: float = 0.0
) -> np.ndarray:
    """Preference of the finished, fully decoded picture; 0 before the end.

    Args:
        transition: the step.
        scale: unused; the preference scorer is already in standard deviations.
        centre: where a saturating bonus is worth one half.
        width: 0 pays the preference itself, in standard deviations; above 0 pays ``sigmoid((p - centre) / width)``,
            in [0, 1], which behaves like a probability of being right and stops paying for what is good enough.
        relative: 1 subtracts the reference schedule's preference (same prompt, same seed) first.
    """
    value = transition.preference_after.astype(np.float64)
    if relative:
        value = value - transition.reference
    if width > 0:
        value = 1 / (1 + np.exp(-(value - centre) / width))
    return np.where(transition.terminal, value, 0.0)

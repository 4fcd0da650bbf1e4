"""Cost of function evaluations."""

from __future__ import annotations

import numpy as np

from addiffusion_env.rewards import RewardTerm, Transition


class NfeCost(RewardTerm):
    """Negative NFE of the action (early exit and refinement included) times the episode's cost per NFE."""

    needs_preview = False
    pays_by = ()

    def __call__(self, transition: Transition) -> np.ndarray:
        """0 or less."""
        return -transition.cost_per_nfe * transition.nfe

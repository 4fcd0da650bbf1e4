"""What evaluations cost."""

from __future__ import annotations

import numpy as np

from addiffusion_env.rewards import RewardTerm, Transition


class NfePrice(RewardTerm):
    """Minus the NFE that the action spent (landing, refinement and re-noising included) times the episode's price."""

    needs_preview = False
    pays_by = ()

    def __call__(self, transition: Transition) -> np.ndarray:
        """0 or less."""
        return -transition.price * transition.nfe

"""What evaluations cost."""

from __future__ import annotations

import numpy as np

from addiffusion_env.rewards.base import Transition


def nfe_price(transition: Transition) -> np.ndarray:
    """Minus the NFE that the action spent (landing, refinement and re-noising included) times the episode's price."""
    return -transition.price * transition.nfe

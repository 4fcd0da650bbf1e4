"""Stability of the picture's content between decisions."""

from __future__ import annotations

import numpy as np

from addiffusion_env.rewards.base import Transition


def dino_stability(transition: Transition) -> np.ndarray:
    """DINO cosine between the pictures before and after, in [-1, 1].

    As a reward it pays for idling (about +0.75 a step), so presets but ``as_published`` give it weight 0.
    """
    return transition.dino_similarity

"""Stability of the image's content between decisions."""

from __future__ import annotations

import numpy as np

from addiffusion_env.rewards import RewardTerm, Transition


class DinoStability(RewardTerm):
    """DINO cosine between the images before and after, in [-1, 1].

    It rewards idling (about +0.75 per step), so all presets except ``as_published`` give it weight 0.
    """

    pays_by = ("dino",)

    def __call__(self, transition: Transition) -> np.ndarray:
        """The transition's value."""
        return transition.dino_similarity

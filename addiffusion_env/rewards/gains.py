"""Changes from one decision to the next: gains of a score, stability of the content."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from addiffusion_env.rewards import RewardTerm, Transition


@dataclass(frozen=True)
class Gain(RewardTerm):
    """Gain of a score over the step, divided by ``std``; subclasses choose the score.

    Attributes:
        gamma: discount of the potential.
        telescopes: whether the gains of an episode sum to 0, see :func:`_gain`.
        std: the unit; the score's standard deviation over images for a gain in standard deviations. A constant, so
            that the reward is the same in every process and after every restart.
    """

    gamma: float = 1.0
    telescopes: float = 1.0
    std: float = 1.0

    def _of(self, transition: Transition, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        return _gain(before, after, transition, self.std, self.gamma, self.telescopes)


@dataclass(frozen=True)
class ClipGain(Gain):
    """Gain of the CLIP score over the step, divided by ``std`` (0.1 for the emoji backbone)."""

    pays_by = ("clip",)

    def __call__(self, transition: Transition) -> np.ndarray:
        """From the previous decision to this one."""
        return self._of(transition, transition.clip_before, transition.clip_after)


@dataclass(frozen=True)
class PreferenceGain(Gain):
    """Gain of the preference score, which is already in standard deviations."""

    pays_by = ("preference",)

    def __call__(self, transition: Transition) -> np.ndarray:
        """From the previous decision to this one."""
        return self._of(transition, transition.preference_before, transition.preference_after)


class DinoStability(RewardTerm):
    """DINO cosine between the images before and after, in [-1, 1].

    It rewards idling (about +0.75 per step), so all presets except ``as_published`` give it weight 0.
    """

    pays_by = ("dino",)

    def __call__(self, transition: Transition) -> np.ndarray:
        """The transition's value."""
        return transition.dino_similarity


def _gain(
    before: np.ndarray, after: np.ndarray, transition: Transition, std: float, gamma: float, telescopes: float
) -> np.ndarray:
    """``gamma Phi(s') - Phi(s)`` with the potential Phi = score / std (Ng, Harada and Russell 1999, theorem 1).

    Phi is 0 before the first image and, with ``telescopes=1``, 0 at the end, so that a whole episode sums to 0 at
    gamma 1: shaping then cannot reward idling, and the optimal policy is that of the other terms. With
    ``telescopes=0`` the gain of the finished image counts as well, and the gain of the first image does not (the
    literal sum of the published design).
    """
    potential = np.nan_to_num(before) / std
    following = np.nan_to_num(after) / std
    if telescopes:
        return gamma * np.where(transition.terminal, 0.0, following) - potential
    return np.where(np.isnan(before), 0.0, following - potential)

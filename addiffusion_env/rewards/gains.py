"""Gains of a score from one decision to the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from addiffusion_env.rewards import RewardTerm, Transition


@dataclass(frozen=True)
class Gain(RewardTerm):
    """Gain of a score over the step, divided by ``std``; subclasses say which score.

    Attributes:
        gamma: discount of the potential.
        telescopes: whether the gains of an episode sum to 0, see :func:`_gain`.
        std: what one unit is; the score's standard deviation over images for a gain in standard deviations. A
            constant, so that every process and every restart pays the same.
    """

    gamma: float = 1.0
    telescopes: float = 1.0
    std: float = 1.0

    def _of(self, transition: Transition, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        return _gain(before, after, transition, self.std, self.gamma, self.telescopes)


@dataclass(frozen=True)
class ClipGain(Gain):
    """Gain of the CLIP cosine over the step, divided by ``std`` (0.1 in the emoji world)."""

    pays_by = ("clip",)

    def __call__(self, transition: Transition) -> np.ndarray:
        """From the decision before to this one."""
        return self._of(transition, transition.clip_before, transition.clip_after)


@dataclass(frozen=True)
class PreferenceGain(Gain):
    """Gain of the preference score, which is in standard deviations already."""

    pays_by = ("preference",)

    def __call__(self, transition: Transition) -> np.ndarray:
        """From the decision before to this one."""
        return self._of(transition, transition.preference_before, transition.preference_after)


def _gain(
    before: np.ndarray, after: np.ndarray, transition: Transition, std: float, gamma: float, telescopes: float
) -> np.ndarray:
    """``gamma Phi(s') - Phi(s)`` with the potential Phi = score / std (Ng, Harada and Russell 1999, theorem 1).

    Phi is 0 where there is no image yet and, when it ``telescopes``, 0 at the end, so that a whole episode sums to
    0 at gamma 1: shaping then cannot pay for idling, and the optimum is that of the other terms. With
    ``telescopes=0`` the gain into the finished image is paid as well, and nothing is paid before a first image
    (the literal sum of the published design).
    """
    potential = np.nan_to_num(before) / std
    following = np.nan_to_num(after) / std
    if telescopes:
        return gamma * np.where(transition.terminal, 0.0, following) - potential
    return np.where(np.isnan(before), 0.0, following - potential)

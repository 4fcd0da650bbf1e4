"""The reward terms that ship: gains and stability of previews, the cost of evaluations, the finished image."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from addiffusion_env.rewards import RewardTerm, Transition
from addiffusion_env.scorers.utility import Utility


@dataclass(frozen=True)
class Gain(RewardTerm):
    """Gain of a score over the step, divided by ``std``; subclasses choose the score.

    It is ``gamma Phi(s') - Phi(s)`` with the potential Phi = score / std (Ng, Harada and Russell 1999, theorem 1). Phi
    is 0 before the first image and, with ``telescopes=1``, 0 at the end, so that a whole episode sums to 0 at gamma 1:
    shaping then cannot reward idling, and the optimal policy is that of the other terms. With ``telescopes=0`` the gain
    of the finished image counts as well, and the gain of the first image does not (the literal sum of the published
    design).

    Attributes:
        gamma: discount of the potential.
        telescopes: whether the gains of an episode sum to 0.
        std: the unit; the score's standard deviation over images for a gain in standard deviations. A constant, so
            that the reward is the same in every process and after every restart.
    """

    gamma: float = 1.0
    telescopes: float = 1.0
    std: float = 1.0

    def _of(self, transition: Transition, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        potential, following = (np.nan_to_num(score) / self.std for score in (before, after))
        if self.telescopes:
            return self.gamma * np.where(transition.terminal, 0.0, following) - potential
        return np.where(np.isnan(before), 0.0, following - potential)


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


class NfeCost(RewardTerm):
    """Negative NFE of the action (early exit and refinement included) times the episode's cost per NFE."""

    needs_preview = False
    pays_by = ()

    def __call__(self, transition: Transition) -> np.ndarray:
        """0 or less."""
        return -transition.cost_per_nfe * transition.nfe


@dataclass(frozen=True)
class TerminalBonus(RewardTerm):
    """Utility of the finished, fully decoded image; 0 before the end.

    Attributes:
        centre: utility at which a saturating bonus is one half.
        width: 0 for the utility u itself, in standard deviations; above 0 the bonus is ``sigmoid((u - centre) /
            width)``, in [0, 1], which saturates like a probability of being correct.
        relative: 1 subtracts the reference schedule's preference (same prompt, same seed) first.
        clip_weight: see :class:`.Utility`, as for the next three; with weight 0 utility is preference.
        clip_centre: the CLIP score that counts as 0.
        clip_scale: its standard deviation.
        calibrator: with ``centre=0, width=1`` the bonus is the calibrated probability of being correct.
        utility: the utility built from these four.
    """

    centre: float = 0.0
    width: float = 0.0
    relative: float = 0.0
    clip_weight: float = 0.0
    clip_centre: float = 0.0
    clip_scale: float = 1.0
    calibrator: str | None = None
    utility: Utility = field(init=False, repr=False)

    needs_preview = False

    def __post_init__(self) -> None:
        utility = Utility(self.clip_weight, self.clip_centre, self.clip_scale, self.calibrator)
        object.__setattr__(self, "utility", utility)

    @property
    def pays_by(self) -> tuple[str, ...]:  # type: ignore[override]
        """The scorers that its utility depends on."""
        return self.utility.parts

    def __call__(self, transition: Transition) -> np.ndarray:
        """The bonus in terminal rows, else 0."""
        scores = (transition.preference_after.astype(np.float64), transition.clip_after.astype(np.float64))
        value = self.utility(*scores, transition.clip_text)
        if self.relative:
            value = value - transition.reference
        if self.width > 0:
            value = 1 / (1 + np.exp(-(value - self.centre) / self.width))
        return np.where(transition.terminal, value, 0.0)

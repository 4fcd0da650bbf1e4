"""What the finished image is worth."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from addiffusion_env.rewards import RewardTerm, Transition
from addiffusion_env.scorers.utility import Utility


@dataclass(frozen=True)
class TerminalBonus(RewardTerm):
    """How much the finished, fully decoded image is liked; 0 before the end.

    Attributes:
        centre: where a saturating bonus is worth one half.
        width: 0 pays the utility itself, in standard deviations; above 0 pays ``sigmoid((p - centre) / width)``,
            in [0, 1], which behaves like a probability of being right and stops paying for what is good enough.
        relative: 1 subtracts the reference schedule's preference (same prompt, same seed) first.
        clip_weight: see :class:`addiffusion_env.scorers.utility.Utility`; with weight 0 utility is preference.
        clip_centre: the same.
        clip_scale: the same.
        calibrator: the same; with ``centre=0, width=1`` the bonus is the chance of being right that it gives.
        utility: what these four make.
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
        """The scorers that its utility reads."""
        return self.utility.parts

    def __call__(self, transition: Transition) -> np.ndarray:
        """The bonus where the episode ends."""
        scores = (transition.preference_after.astype(np.float64), transition.clip_after.astype(np.float64))
        value = self.utility(*scores, transition.clip_text)
        if self.relative:
            value = value - transition.reference
        if self.width > 0:
            value = 1 / (1 + np.exp(-(value - self.centre) / self.width))
        return np.where(transition.terminal, value, 0.0)

"""Terminal reward for the finished image."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from addiffusion_env.rewards import RewardTerm, Transition
from addiffusion_env.scorers.utility import Utility


@dataclass(frozen=True)
class TerminalBonus(RewardTerm):
    """Utility of the finished, fully decoded image; 0 before the end.

    Attributes:
        centre: utility at which a saturating bonus is one half.
        width: 0 for the utility u itself, in standard deviations; above 0 the bonus is ``sigmoid((u - centre) /
            width)``, in [0, 1], which saturates like a probability of being correct.
        relative: 1 subtracts the reference schedule's preference (same prompt, same seed) first.
        clip_weight: see :class:`addiffusion_env.scorers.utility.Utility`; with weight 0 utility is preference.
        clip_centre: see :class:`addiffusion_env.scorers.utility.Utility`.
        clip_scale: see :class:`addiffusion_env.scorers.utility.Utility`.
        calibrator: see :class:`addiffusion_env.scorers.utility.Utility`; with ``centre=0, width=1`` the bonus is the
            calibrated probability of being correct.
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

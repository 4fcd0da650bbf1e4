"""The looks of a batch of lanes, as arrays: some lanes have no image yet, or nobody looked at theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from addiffusion_env.scorers.liking import Liking
from addiffusion_env.scorers.look import Look


@dataclass(frozen=True, eq=False)
class LookBatch:
    """Looks at the images of ``B`` lanes.

    Attributes:
        look: B rows; those of lanes without a look hold zeros.
        known: (B,) bool, which lanes have a look.
    """

    look: Look
    known: np.ndarray

    @classmethod
    def of(cls, looks: Sequence[Look | None], clip_dim: int = 0) -> LookBatch:
        """Joins looks of one row each; where all are ``None``, CLIP embeddings are ``clip_dim`` wide and DINO's 0."""
        found = next((look for look in looks if look is not None), None)
        if found is None:
            clip, score = np.zeros((1, clip_dim), np.float32), np.zeros(1, np.float32)
            blank = Look(clip, clip, score, score, np.zeros((1, 0), np.float32))
        else:
            blank = Look(*(np.zeros_like(getattr(found, item.name)) for item in fields(Look)))
        known = np.array([look is not None for look in looks])
        return cls(Look.cat([blank if look is None else look for look in looks]), known)

    def score(self, name: str, absent: float = 0.0) -> np.ndarray:
        """(B,) float64 scores: ``clip_score`` or ``preference``; ``absent`` where there is no look."""
        return np.where(self.known, getattr(self.look, name).astype(np.float64), absent)

    def similarity(self, other: LookBatch) -> np.ndarray:
        """(B,) cosine of the DINO embeddings of two looks at each lane; 0 where one is missing."""
        both = self.known & other.known
        found = np.zeros(len(both))
        found[both] = (self.look.dino[both] * other.look.dino[both]).sum(1) if both.any() else 0.0
        return found

    def liked(self, liking: Liking) -> np.ndarray:
        """(B,) float64 how much each image is liked; 0 where there is no look."""
        if not self.known.any():
            return np.zeros(len(self.known))
        value = liking(self.look.preference, self.look.clip_score, self.look.clip_text)
        return np.where(self.known, value, 0.0)

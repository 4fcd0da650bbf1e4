"""What a reward term is: a transition of ``B`` lanes in, (B,) numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from addiffusion_env.scorers.look_batch import LookBatch


@dataclass(frozen=True)
class Transition:
    """One step of ``B`` lanes, as the reward sees it. At a terminal row "after" is the finished picture.

    Attributes:
        clip_before: (B,) CLIP cosine of the preview before the action; NaN when there was no picture yet.
        clip_after: (B,) after it; NaN where nobody looked (no term with a weight reads previews).
        preference_before: (B,) preference before, in standard deviations; NaN when there was no picture yet.
        preference_after: (B,) after it; NaN likewise.
        dino_similarity: (B,) cosine between the DINO embeddings before and after, 0 without a picture before.
        clip_text: (B, D) unit CLIP embeddings of the prompts.
        nfe: (B,) evaluations that the action spent.
        price: (B,) price of one NFE in this episode.
        action: (B,) what was done.
        terminal: (B,) bool, the picture is finished.
        reference: (B,) preference of the same prompt and seed at the reference schedule; NaN when not asked for.
    """

    clip_before: np.ndarray
    clip_after: np.ndarray
    preference_before: np.ndarray
    preference_after: np.ndarray
    dino_similarity: np.ndarray
    clip_text: np.ndarray
    nfe: np.ndarray
    price: np.ndarray
    action: np.ndarray
    terminal: np.ndarray
    reference: np.ndarray

    @classmethod
    def of(
        cls,
        before: LookBatch,
        after: LookBatch,
        clip_text: np.ndarray,
        nfe: np.ndarray,
        price: np.ndarray,
        action: np.ndarray,
        terminal: np.ndarray,
        reference: np.ndarray | None = None,
    ) -> Transition:
        """From the looks before and after a step; see the class for the others. ``None`` is no reference."""
        nothing = float("nan")
        return cls(
            clip_before=before.score("clip_score", nothing),
            clip_after=after.score("clip_score", nothing),
            preference_before=before.score("preference", nothing),
            preference_after=after.score("preference", nothing),
            dino_similarity=after.similarity(before),
            clip_text=clip_text,
            nfe=nfe,
            price=price,
            action=action,
            terminal=terminal,
            reference=np.full(len(nfe), nothing) if reference is None else reference,
        )

    def rows(self, places: Sequence[int]) -> Transition:
        """Some of its lanes, in that order."""
        return Transition(**{item.name: getattr(self, item.name)[list(places)] for item in fields(self)})


class RewardTerm:
    """One named term of a reward: a subclass and its line in ``rewards.TERMS``. A dataclass's fields are its settings.

    Attributes:
        needs_preview: whether it compares previews, which must then be decoded and scored at each decision; ``False``
            for a term that reads finished images alone, or no score at all.
        pays_by: the scorers that it pays by, by their part in :class:`.LookScorers`: they cannot judge a policy that
            is paid by it.
    """

    needs_preview: ClassVar[bool] = True
    pays_by: ClassVar[Sequence[str]] = ("preference", "clip", "dino")

    def __call__(self, transition: Transition) -> np.ndarray:
        """(B,) values in the term's own unit, before its weight."""
        raise NotImplementedError

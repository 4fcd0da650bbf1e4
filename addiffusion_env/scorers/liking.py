"""How much a picture is liked: preference, with it how well CLIP finds the prompt in the picture, or a belief in both.

Neither score is enough where tries are to be told apart. On 320 emoji prompts, five tries each, preference alone says
which finished picture is right with AUC .88, CLIP alone .67, both together .92 (the detector as judge, which is used
for nothing else): preference knows relations, CLIP knows classes and counts. A :class:`.belief.Belief` also knows that
the same scores mean more on an easy prompt than on a hard one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

import numpy as np

from addiffusion_env.backbones.identity import described
from addiffusion_env.scorers.belief import belief_of
from addiffusion_env.scorers.look import Look
from addiffusion_env.settings import Gt, Settings


@dataclass(frozen=True)
class Liking(Settings):
    """``preference + clip_weight * (clip_score - clip_centre) / clip_scale``, in standard deviations of preference.

    With a belief it is that belief's log-odds of the picture being right instead.

    Attributes:
        clip_weight: 0 is preference alone.
        clip_centre: CLIP score that counts as 0: the mean over finished pictures of training prompts.
        clip_scale: its standard deviation there; above 0.
        belief: name or file of a :class:`addiffusion_env.scorers.belief.Belief`; ``None`` for the weighted sum.
    """

    section: ClassVar[str] = "liking"

    clip_weight: float = 0.0
    clip_centre: float = 0.0
    clip_scale: Annotated[float, Gt(0)] = 1.0
    belief: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.belief is not None:
            belief_of(self.belief)  # refuses a name that is not known

    @property
    def parts(self) -> tuple[str, ...]:
        """The scorers that it reads, by their part in :class:`.LookScorers`."""
        return ("preference", "clip") if self.belief is not None or self.clip_weight else ("preference",)

    @property
    def identity(self) -> dict[str, Any]:
        """The settings, and the content of the belief that they name."""
        belief = None if self.belief is None else described(belief_of(self.belief))
        return {**{item.name: getattr(self, item.name) for item in fields(self)}, "belief": belief}

    def __call__(self, preference: np.ndarray, clip_score: np.ndarray, clip_text: np.ndarray) -> np.ndarray:
        """(B, ...) scores of pictures of B prompts, (B, D) embeddings of the prompts -> (B, ...) liking."""
        if self.belief is not None:
            return belief_of(self.belief)(preference, clip_score, clip_text)
        if self.clip_weight == 0:
            return preference
        return preference + self.clip_weight * (clip_score - self.clip_centre) / self.clip_scale

    def at(self, look: Look) -> float:
        """Of a look at one picture."""
        return float(self(look.preference, look.clip_score, look.clip_text)[0])

"""Held-out judges of finished images: they are not used in rewards, so they can decide claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Protocol

import torch

from addiffusion_env.backbones import traits_of
from addiffusion_env.errors import ConfigError
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers import SCORERS, Scorer, named, require_finite
from addiffusion_env.scorers.image_scores import ImageScorers


class VerdictJudge(Protocol):
    """Judges whether images meet their prompts' requirements; each verdict has ``correct`` and ``reason``."""

    def verdicts(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> Sequence[Any]:
        """Judges (B, 3, H, W) images in [-1, 1] of ``B`` prompts that all have requirements."""


@dataclass(frozen=True)
class Judgement:
    """The judges' results for one image.

    Attributes:
        correct: the verdict; ``None`` without requirements to judge by.
        reason: its reason; empty without a verdict.
        extra: the other scorers' numbers.
    """

    correct: bool | None
    reason: str
    extra: Mapping[str, float]


def choose_judges(names: Sequence[str] | None, backbone: str) -> list[str]:
    """The judges of an evaluation: the given ones, or a backbone's defaults.

    Raises:
        ConfigError: for a judge that supports only the images of another world; before any image
            is generated.
        UnknownNameError: for a name that is no scorer.
    """
    traits = traits_of(backbone)
    chosen = list(traits.judges if names is None else names)
    for name in chosen:
        world = getattr(SCORERS.load(name), "world", "any")
        if world not in ("any", traits.world):
            raise ConfigError(
                f"judge {name!r} supports images of the {world} world only and cannot judge those of {backbone!r}",
                f"set judges=[{', '.join(traits.judges)}], or judges=[]",
            )
    return chosen


def described(image_scores: ImageScorers, judges: Judges) -> dict[str, str]:
    """Measure -> description of its model and scale: CLIP scores of different models or scales are not comparable."""
    scorers: dict[str, Any] = {"clip_score": image_scores.clip, "preference": image_scores.preference, **judges.scorers}
    if judges.verdict is not None:
        scorers["correct"] = judges.verdict
    return {measure: _words(scorer) for measure, scorer in scorers.items()}


def _words(scorer: Any) -> str:
    parts = (getattr(scorer, "name", type(scorer).__name__), getattr(scorer, "label", ""), getattr(scorer, "unit", ""))
    return ", ".join(dict.fromkeys(str(part) for part in parts if part))


@dataclass(frozen=True)
class Judges:
    """The judges of an evaluation.

    Attributes:
        verdict: the rule-based judge, or ``None``.
        scorers: further scorers, by name.
        batch: maximum number of images per call.
    """

    verdict: VerdictJudge | None = None
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    batch: int = 64

    @classmethod
    def of(cls, names: Sequence[str], device: torch.device | str = "cpu") -> Judges:
        """Loads judges by their registry names; those with verdicts judge correctness.

        Raises:
            UnknownNameError: for a name that is no scorer.
            ConfigError: for one that gives no score, such as ``dino``, which compares images.
            WeightsError: when weights are missing.
        """
        verdict: VerdictJudge | None = None
        scorers: dict[str, Scorer] = {}
        for name in names:
            kind = SCORERS.load(name)
            if not hasattr(kind, "score") and not hasattr(kind, "verdicts"):
                raise ConfigError(
                    f"{name!r} does not score images, so it cannot judge", "set judges=[hps], or judges=[]"
                )
            make = kind.from_pretrained
            judge = make(device=device) if "device" in signature(make).parameters else make()
            if hasattr(judge, "verdicts"):
                verdict = judge
            else:
                scorers[name] = judge
        return cls(verdict, scorers)

    def judge(self, images: Sequence[torch.Tensor], prompts: Sequence[Prompt]) -> list[Judgement]:
        """Judges (3, H, W) images in [-1, 1], in batches.

        Raises:
            NumericsError: when a scorer gives NaN or infinity, naming it and the prompt.
            ScorerError: when a judge raises an error, naming it.
        """
        found: list[Judgement] = []
        for first in range(0, len(images), self.batch):
            found += self._judge(
                torch.stack(list(images[first : first + self.batch])), prompts[first : first + self.batch]
            )
        return found

    def verdicts(self, images: Sequence[torch.Tensor], prompts: Sequence[Prompt]) -> list[bool | None]:
        """Whether each image is correct; ``None`` without requirements to judge by."""
        return [found.correct for found in self.judge(images, prompts)]

    def _judge(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> list[Judgement]:
        columns = {}
        for name, scorer in self.scorers.items():
            with named(f"judge {name}") as judge:
                texts = [prompt.text for prompt in prompts]
                columns[name] = require_finite(scorer.score(images, prompts), judge, texts).tolist()
        verdicts: dict[int, Any] = {}
        rows = [row for row, prompt in enumerate(prompts) if prompt.requirements is not None]
        if self.verdict is not None and rows:
            with named(f"judge {type(self.verdict).__name__}"):
                judged = self.verdict.verdicts(images[rows], [prompts[row] for row in rows])
            verdicts = dict(zip(rows, judged, strict=True))
        return [
            Judgement(
                correct=bool(verdicts[row].correct) if row in verdicts else None,
                reason=str(verdicts[row].reason) if row in verdicts else "",
                extra={name: float(values[row]) for name, values in columns.items()},
            )
            for row in range(len(prompts))
        ]

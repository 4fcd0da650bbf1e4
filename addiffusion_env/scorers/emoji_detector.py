"""Exact correctness on the emoji world: GenEval's rules applied to the detector's output.

Held out: it is never used in a reward, so it can decide claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from addiffusion_env.backbones.emoji import WEIGHTS
from addiffusion_env.backbones.emoji.detector import Detection, Detector, detect, load_detector
from addiffusion_env.errors import ImageRangeError, PromptError
from addiffusion_env.prompts import Prompt
from addiffusion_env.prompts.emoji_grammar import Group, Scene
from addiffusion_env.prompts.emoji_vocabulary import IMAGE_SIZE, RELATIONS, color_name
from addiffusion_env.scorers import Scorer, check_images

MARGIN = 6.0
"""Minimum distance in pixels by which one centre must be left of (above ...) another for the relation to hold."""


@dataclass(frozen=True)
class Verdict:
    """Whether an image shows what its prompt asks for, with the reasons if not.

    Attributes:
        correct: each group is present with its exact count and colour, nothing else is, and the relation holds.
        reason: all failures, joined by "; ", as in GenEval ("expected 2 red cup, found 1"); "correct" without failures.
        found: the detections.
    """

    correct: bool
    reason: str
    found: tuple[Detection, ...]


def judge(found: Sequence[Detection], scene: Scene) -> Verdict:
    """Compares detections with the requested scene (the rule is :class:`Verdict`'s ``correct``)."""
    failures = [failure for group in scene.groups if (failure := _judge_group(found, group))]
    counts_hold = not failures
    asked = {group.cls for group in scene.groups}
    if extras := [item for item in found if item.cls not in asked]:
        failures.append(f"expected nothing else, found {', '.join(item.name for item in extras)}")
    if counts_hold and scene.relation is not None and (failure := _judge_relation(found, scene)):
        failures.append(failure)
    return Verdict(not failures, "; ".join(failures) or "correct", tuple(found))


def _judge_group(found: Sequence[Detection], group: Group) -> str:
    """What is wrong with a group's count or colours; empty when nothing is."""
    same = [item for item in found if item.cls == group.cls]
    wanted = " ".join(filter(None, (str(group.count), color_name(group.color), group.name)))
    if len(same) != group.count:
        return f"expected {wanted}, found {len(same)}"
    if group.color and (wrong := [item for item in same if item.color != group.color]):
        colors = ", ".join(color_name(item.color) or "uncoloured" for item in wrong)
        return f"expected {wanted}, found {group.count - len(wrong)} {color_name(group.color)} and {colors}"
    return ""


def _judge_relation(found: Sequence[Detection], scene: Scene) -> str:
    """What is wrong with the relation of the two objects; empty when it holds."""
    assert scene.relation is not None
    first, second = (next(item for item in found if item.cls == group.cls) for group in scene.groups)
    dx, dy = second.x - first.x, second.y - first.y
    if (dx, -dx, dy, -dy)[scene.relation] > MARGIN:
        return ""
    wanted = f"{first.name} {RELATIONS[scene.relation]} {second.name}"
    return f"expected {wanted}, found them at ({first.x:.0f}, {first.y:.0f}) and ({second.x:.0f}, {second.y:.0f})"


class EmojiDetectorScorer(Scorer):
    """1 for an image that shows exactly what its prompt asks for, else 0.

    Args:
        detector: a trained detector, in evaluation mode.
    """

    name: ClassVar[str] = "emoji_detector"
    world: ClassVar[str] = "emoji"
    unit: ClassVar[str] = "share correct"

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None, device: str | torch.device = "cpu") -> EmojiDetectorScorer:
        """Loads detector A from a folder of emoji weights (the shipped ones when ``path`` is ``None``).

        Raises:
            WeightsError: for a missing or corrupted file.
        """
        return cls(load_detector(WEIGHTS if path is None else path, device=device))

    def score(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """(B, 3, 64, 64) images in [-1, 1] -> (B,) float32 of 0 and 1.

        Raises:
            ImageRangeError: for images of another shape, size or range.
            PromptError: for another number of prompts, or one without a :class:`Scene` as its requirements.
        """
        return torch.tensor([float(verdict.correct) for verdict in self.verdicts(images, prompts)], dtype=torch.float32)

    def verdicts(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> list[Verdict]:
        """Judges each image by its prompt; raises the same errors as :meth:`score`."""
        if check_images(images).shape[2:] != (IMAGE_SIZE, IMAGE_SIZE):
            height, width = images.shape[2:]
            raise ImageRangeError(
                f"the emoji detector reads {IMAGE_SIZE}x{IMAGE_SIZE} images, got {height}x{width}",
                "score the emoji backbone's own images",
            )
        if len(images) != len(prompts):
            raise PromptError(f"{len(images)} images but {len(prompts)} prompts", "pass one prompt per image")
        scenes = [_scene_of(prompt) for prompt in prompts]
        return [judge(found, scene) for found, scene in zip(detect(self.detector, images), scenes, strict=True)]


def _scene_of(prompt: Prompt) -> Scene:
    if not isinstance(prompt.requirements, Scene):
        raise PromptError(
            f"prompt {prompt.text!r} has no emoji scene to be judged by, got {type(prompt.requirements).__name__}",
            "make it with emoji_prompt(text), in the grammar's words: 'a photo of two red cups and a dog'",
        )
    return prompt.requirements

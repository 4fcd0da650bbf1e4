"""Accuracy of the emoji detector's verdicts, compared with the rule on the rendered content.

python -m addiffusion_lab.claims.detector [--scenes 1024]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from addiffusion_env.backbones.emoji.detector import Detection
from addiffusion_env.envs.settings import EnvSettings, load_backbone
from addiffusion_env.evaluation.sections import Section, Table
from addiffusion_env.evaluation.statistics import Interval, share_interval
from addiffusion_env.prompts.emoji_grammar import scene_prompt
from addiffusion_env.prompts.emoji_vocabulary import CLASSES, COLORS
from addiffusion_env.scorers.emoji_detector import EmojiDetectorScorer, judge
from addiffusion_lab.emoji_training.layouts import sample_scenes
from addiffusion_lab.emoji_training.renderer import Renderer

SCENES, SEED = 1024, 20_261_130
BATCH = 64


@dataclass(frozen=True)
class DetectorAccuracy:
    """Agreement of the detector with the rule on the known content.

    Attributes:
        images: description of the images.
        correct: share of correct images that are judged correct.
        wrong: share of wrong images that are judged wrong.
    """

    images: str
    correct: Interval
    wrong: Interval


def detector_accuracy(scenes: int = SCENES, seed: int = SEED) -> list[DetectorAccuracy]:
    """Measures the accuracy on rendered scenes, and on the same ones through the emoji world's autoencoder.

    Every scene is drawn twice: as its prompt asks, and with one mistake (an object missing, of another class, in
    another colour, or two objects swapped). The truth is the rule of :func:`.judge` on the drawn content.

    Args:
        scenes: number of scenes.
        seed: seed of scenes, mistakes and renderer.
    """
    drawn, layouts = sample_scenes(scenes, seed)
    rng = np.random.default_rng(seed)
    shown = np.concatenate([layouts, np.stack([_mistaken(layout, rng) for layout in layouts])])
    asked = [*drawn, *drawn]
    truth = np.array([judge(_content(layout), scene).correct for layout, scene in zip(shown, asked, strict=True)])
    prompts = [scene_prompt(scene) for scene in asked]
    scorer, renderer = EmojiDetectorScorer.from_pretrained(), Renderer()
    backbone = load_backbone(EnvSettings())
    generator = torch.Generator().manual_seed(seed)
    verdicts: dict[str, list[float]] = {"as rendered": [], "through the autoencoder": []}
    with torch.no_grad():
        for first in range(0, len(shown), BATCH):
            images = renderer(shown[first : first + BATCH], generator)
            parts = backbone.parts  # type: ignore[attr-defined]
            latents = parts.vae.encode(images).latent_dist.mean
            decoded = parts.vae.decode(latents).sample.clamp(-1, 1)
            for name, seen in zip(verdicts, (images, decoded), strict=True):
                verdicts[name] += scorer.score(seen, prompts[first : first + BATCH]).tolist()
    found = []
    for name, values in verdicts.items():
        said = np.array(values)
        shares = (share_interval(agree) for agree in (said[truth], 1 - said[~truth]))
        found.append(DetectorAccuracy(name, *shares))
    return found


def detector_section(found: Sequence[DetectorAccuracy]) -> Section:
    """The section of the page of results."""
    rows = tuple((row.images, f"{row.correct} of {row.correct.n}", f"{row.wrong} of {row.wrong.n}") for row in found)
    words = (
        "The judge's accuracy, against the rule on the rendered content (`python -m "
        "addiffusion_lab.claims.detector`): each scene as requested, and with one mistake."
    )
    return Section(
        "Accuracy of the detector", (words, Table(("images", "correct ones passed", "wrong ones refused"), rows))
    )


def _content(layout: np.ndarray) -> list[Detection]:
    """The content of an (n, 5) layout as detections."""
    return [Detection(int(cls), int(color), float(x), float(y), 1.0) for cls, color, x, y, _ in layout if cls >= 0]


def _mistaken(layout: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy of an (n, 5) layout with one mistake, which may leave the image correct by the rule."""
    layout = layout.copy()
    there = np.flatnonzero(layout[:, 0] >= 0)
    row = int(rng.choice(there))
    kind = int(rng.integers(4))
    if kind == 0:
        layout[row] = -1
    elif kind == 1:
        layout[row, 0] = (layout[row, 0] + rng.integers(1, len(CLASSES))) % len(CLASSES)
    elif kind == 2 or len(there) < 2:
        layout[row, 1] = (layout[row, 1] + rng.integers(1, len(COLORS) + 1)) % (len(COLORS) + 1)
    else:
        other = int(rng.choice(there[there != row]))
        layout[[row, other], 2:4] = layout[[other, row], 2:4]
    return layout


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    from addiffusion_env.evaluation.rendering import to_markdown

    parser = argparse.ArgumentParser(prog="python -m addiffusion_lab.claims.detector", description=__doc__)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    print(to_markdown("Emoji detector", [detector_section(detector_accuracy(options.scenes, options.seed))]))


if __name__ == "__main__":
    main()

"""Stage detector: centre points, classes and colours, on rendered scenes."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from torch.nn import functional as F

from addiffusion_env.backbones.emoji.detector import STRIDE, Detector, detect
from addiffusion_env.prompts.emoji_vocabulary import CLASSES, IMAGE_SIZE
from addiffusion_lab.emoji_training.config import TrainConfig, TrainReport
from addiffusion_lab.emoji_training.data import augment, scene_bank
from addiffusion_lab.emoji_training.layouts import sample_scenes
from addiffusion_lab.emoji_training.run import Run, save_state

GRID = IMAGE_SIZE // STRIDE


class Targets(NamedTuple):
    """Training targets of the detector.

    Attributes:
        heat: (B, classes, 16, 16), 1 at centres and a Gaussian around them.
        cells: (M, 3) sample, row and column of every object's centre.
        colors: (M,) colour of every object, 0 to 10.
    """

    heat: torch.Tensor
    cells: torch.Tensor
    colors: torch.Tensor


def targets_of(layouts: torch.Tensor) -> Targets:
    """Targets for (B, n, 5) layouts; the Gaussian's width is proportional to the sprite, at least 0.8 cells."""
    device = layouts.device
    samples, objects = (layouts[..., 0] >= 0).nonzero(as_tuple=True)
    cls, color, x, y, size = layouts[samples, objects].unbind(1)
    cls, x, y = cls.long(), x / STRIDE, y / STRIDE
    columns, rows = (value.long().clamp(0, GRID - 1) for value in (x, y))
    centres = torch.arange(GRID, device=device) + 0.5
    distance = (centres - x[:, None]).square()[:, None, :] + (centres - y[:, None]).square()[:, :, None]
    width = (size / 14).clamp_min(0.8).view(-1, 1, 1)
    bumps = torch.exp(-distance / (2 * width.square()))
    bumps[torch.arange(len(bumps), device=device), rows, columns] = 1.0
    heat = torch.zeros(len(layouts), len(CLASSES), GRID, GRID, device=device)
    # Two objects of one class share a map: each cell takes the larger value.
    flat = (samples * len(CLASSES) + cls).view(-1, 1, 1).expand_as(bumps)
    heat.view(-1, GRID, GRID).scatter_reduce_(0, flat, bumps, reduce="amax")
    return Targets(heat, torch.stack([samples, rows, columns], dim=1), color.long())


def focal_loss(logits: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
    """Penalty-reduced pixelwise focal loss per centre (CenterNet, eq. 1, with alpha 2 and beta 4)."""
    p = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    positive = (heat > 0.999).float()
    hit = positive * (1 - p).square() * p.log()
    miss = (1 - positive) * (1 - heat).pow(4) * p.square() * (1 - p).log()
    return -(hit + miss).sum() / positive.sum().clamp_min(1)


def train_detector(config: TrainConfig) -> TrainReport:
    """Writes ``detector_a/``; ``exact`` is the share of clean renders read without any error."""
    run = Run("detector_a", config)
    with run.initial_weights():
        detector = Detector().to(run.device)
    layouts = scene_bank(config, run.stage, run.device).layouts
    optimizer = torch.optim.AdamW(detector.parameters(), config.lr, weight_decay=0.02)
    for _ in run.clock(optimizer):
        batch = layouts[run.pick(len(layouts))]
        images = augment(run.render(batch), run.generator)
        target = targets_of(batch)
        with run.autocast():
            heat, color = detector(images)
        sample, row, column = target.cells.unbind(1)
        centre_loss = focal_loss(heat.float(), target.heat)
        color_loss = F.cross_entropy(color.float()[sample, :, row, column], target.colors)
        run.update(optimizer, centre_loss + color_loss, detector.parameters(), centre=centre_loss, color=color_loss)
    folder = config.out / "detector_a"
    save_state(detector, folder)
    return run.report(folder, exact=exact_share(run, detector.eval()))


def exact_share(run: Run, detector: Detector, count: int = 1000) -> float:
    """The share of new clean renders in which exactly the drawn classes and colours are found; at most ``scenes``."""
    _, layouts = sample_scenes(min(count, run.config.scenes), run.config.seed + 777)
    found = detect(detector, run.render(torch.from_numpy(layouts)))
    exact = [
        Counter((item.cls, item.color) for item in items)
        == Counter((int(cls), int(color)) for cls, color, *_ in rows if cls >= 0)
        for items, rows in zip(found, layouts, strict=True)
    ]
    return sum(exact) / len(exact)

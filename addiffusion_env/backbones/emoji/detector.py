"""Detects the objects of an image: class, colour and centre. Corresponds to GenEval's Mask2Former.

A small CenterNet (Zhou et al., 2019, arXiv:1904.07850): one heat map per class whose local maxima are the objects'
centres, and a colour for each cell. It is trained on rendered scenes and is never used in a reward, so it can judge
any sampler.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from addiffusion_env.backbones.emoji import WEIGHTS, verify
from addiffusion_env.prompts.emoji_vocabulary import CLASSES, COLORS, color_name

STRIDE = 4
"""Pixels per cell of the detector's maps."""

THRESHOLD = 0.3
"""The minimum confidence of a detection."""


@dataclass(frozen=True)
class Detection:
    """One object found in an image.

    Attributes:
        cls: index into ``CLASSES``.
        color: 0 for the emoji's own colours, else ``1 +`` the index into ``COLORS``.
        x: centre, pixels from the left.
        y: centre, pixels from the top.
        confidence: in (``THRESHOLD``, 1].
    """

    cls: int
    color: int
    x: float
    y: float
    confidence: float

    @property
    def name(self) -> str:
        """The class name."""
        return CLASSES[self.cls].name

    def __str__(self) -> str:
        return " ".join(filter(None, (color_name(self.color), self.name))) + f" at ({self.x:.0f}, {self.y:.0f})"


WIDTH = 64
"""Channels at stride 4; twice as many at stride 8."""

BLOCKS = 4
"""Residual blocks at stride 8; half as many before and after."""


def _layers(*convolutions: nn.Conv2d) -> list[nn.Module]:
    """Each convolution with its normalisation and non-linearity."""
    norms = [nn.GroupNorm(8, convolution.out_channels) for convolution in convolutions]
    return [layer for pair in zip(convolutions, norms, strict=True) for layer in (*pair, nn.SiLU())]


class Detector(nn.Module):
    """(B, 3, 64, 64) images in [-1, 1] -> class and colour logits on a 16x16 grid."""

    def __init__(self) -> None:
        super().__init__()

        def block(channels: int) -> nn.Sequential:
            first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
            return nn.Sequential(*_layers(first, second)[:-1])

        # The attribute names are the keys of the shipped weights.
        first = nn.Conv2d(3, WIDTH // 2, 3, stride=2, padding=1)
        self.stem = nn.Sequential(*_layers(first, nn.Conv2d(WIDTH // 2, WIDTH, 3, stride=2, padding=1)))
        self.down = nn.Conv2d(WIDTH, 2 * WIDTH, 3, stride=2, padding=1)
        self.b1 = nn.ModuleList([block(WIDTH) for _ in range(BLOCKS // 2)])
        self.b2 = nn.ModuleList([block(2 * WIDTH) for _ in range(BLOCKS)])
        self.up = nn.Conv2d(2 * WIDTH, WIDTH, 1)
        self.b3 = nn.ModuleList([block(WIDTH) for _ in range(BLOCKS // 2)])
        self.act = nn.SiLU()
        self.heat = nn.Conv2d(WIDTH, len(CLASSES), 1)
        self.col = nn.Conv2d(WIDTH, 1 + len(COLORS), 1)
        assert self.heat.bias is not None
        nn.init.constant_(self.heat.bias, -4.0)  # few cells are centres: start from "nothing here"

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns logits of centres (B, classes, 16, 16) and of colours (B, 11, 16, 16)."""
        fine = self.stem(images)
        for block in self.b1:
            fine = self.act(fine + block(fine))
        coarse = self.down(fine)
        for block in self.b2:
            coarse = self.act(coarse + block(coarse))
        fine = fine + F.interpolate(self.up(coarse), scale_factor=2)
        for block in self.b3:
            fine = self.act(fine + block(fine))
        return self.heat(fine), self.col(fine)


def load_detector(folder: str | Path = WEIGHTS, device: str | torch.device = "cpu") -> Detector:
    """Loads a trained detector, in float32 and evaluation mode, from a folder of emoji weights.

    Raises:
        WeightsError: for a missing or corrupted file.
    """
    from safetensors.torch import load_file

    detector = Detector()
    detector.load_state_dict(load_file(verify(folder, "detector_a") / "model.safetensors"))
    return detector.to(device).eval()


@torch.no_grad()
def detect(detector: Detector, images: torch.Tensor, batch: int = 512) -> list[tuple[Detection, ...]]:
    """Detects the objects of (B, 3, 64, 64) images in [-1, 1]; in each image sorted from top to bottom.

    An object is a cell whose best class has a confidence above ``THRESHOLD`` and above that of every cell within two
    cells (8 pixels): two objects closer than that count as one.
    """
    device = next(detector.parameters()).device
    found: list[list[Detection]] = [[] for _ in range(len(images))]
    for start in range(0, len(images), batch):
        heat, color = detector(images[start : start + batch].to(device, torch.float32))
        best, cls = heat.sigmoid().max(1)
        peak = (best == F.max_pool2d(best[:, None], 5, stride=1, padding=2)[:, 0]) & (best > THRESHOLD)
        places = zip(
            peak.nonzero().tolist(),
            cls[peak].tolist(),
            color.argmax(1)[peak].tolist(),
            best[peak].tolist(),
            strict=True,
        )
        for (index, row, column), kind, tint, confidence in places:
            x, y = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
            found[start + index].append(Detection(kind, tint, x, y, confidence))
    return [tuple(items) for items in found]

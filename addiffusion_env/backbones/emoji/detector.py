"""Detects the objects of an image: class, colour and centre. Corresponds to GenEval's Mask2Former.

A small CenterNet (Zhou et al., 2019, arXiv:1904.07850): one heat map per class whose local maxima are the objects'
centres, and a colour for each cell. It is trained on rendered scenes and is never used in a reward, so it can judge
any sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from addiffusion_env.backbones.emoji import WEIGHTS, verify
from addiffusion_env.errors import unknown
from addiffusion_env.prompts.emoji_vocabulary import CLASSES, COLORS, color_name

STRIDE = 4
"""Pixels per cell of the detector's maps."""

THRESHOLD = 0.3
"""The minimum confidence of a detection."""

VARIANTS = ("a", "b")
"""``"a"`` is shipped; ``"b"`` has a different architecture, for training a second, independent detector."""


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


Layer = Callable[[], nn.Module]


class Detector(nn.Module):
    """(B, 3, 64, 64) images in [-1, 1] -> class and colour logits on a 16x16 grid.

    Args:
        width: channels at stride 4; twice as many at stride 8.
        blocks: residual blocks at stride 8; half as many before and after.
        activation: constructs the non-linearity.
        norm: constructs the normalisation layer for a number of channels.
    """

    def __init__(
        self,
        width: int = 64,
        blocks: int = 4,
        activation: Layer = nn.SiLU,
        norm: Callable[[int], nn.Module] = lambda channels: nn.GroupNorm(8, channels),
    ) -> None:
        super().__init__()

        def block(channels: int) -> nn.Sequential:
            first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
            return nn.Sequential(first, norm(channels), activation(), second, norm(channels))

        # The attribute names are the keys of the shipped weights.
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 3, stride=2, padding=1),
            norm(width // 2),
            activation(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
            norm(width),
            activation(),
        )
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.b1 = nn.ModuleList([block(width) for _ in range(blocks // 2)])
        self.b2 = nn.ModuleList([block(2 * width) for _ in range(blocks)])
        self.up = nn.Conv2d(2 * width, width, 1)
        self.b3 = nn.ModuleList([block(width) for _ in range(blocks // 2)])
        self.act = activation()
        self.heat = nn.Conv2d(width, len(CLASSES), 1)
        self.col = nn.Conv2d(width, 1 + len(COLORS), 1)
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


def make_detector(variant: str = "a") -> Detector:
    """An untrained detector of one of ``VARIANTS``.

    Raises:
        UnknownNameError: for another variant.
    """
    if variant not in VARIANTS:
        raise unknown("detector variant", variant, VARIANTS)
    return Detector() if variant == "a" else Detector(80, 6, nn.GELU, nn.BatchNorm2d)


def load_detector(folder: str | Path = WEIGHTS, variant: str = "a", device: str | torch.device = "cpu") -> Detector:
    """Loads a trained detector, in float32 and evaluation mode, from a folder of emoji weights.

    Raises:
        WeightsError: for a missing or corrupted file.
        UnknownNameError: for a variant that does not exist or is not in ``folder``.
    """
    from safetensors.torch import load_file

    detector = make_detector(variant)
    detector.load_state_dict(load_file(verify(folder, f"detector_{variant}") / "model.safetensors"))
    return detector.to(device).eval()


@torch.no_grad()
def detect(
    detector: Detector, images: torch.Tensor, threshold: float = THRESHOLD, batch: int = 512
) -> list[tuple[Detection, ...]]:
    """Detects the objects of (B, 3, 64, 64) images in [-1, 1]; in each image sorted from top to bottom.

    An object is a cell whose best class has a confidence above ``threshold`` and above that of every cell within two
    cells (8 pixels): two objects closer than that count as one.
    """
    device = next(detector.parameters()).device
    found: list[list[Detection]] = [[] for _ in range(len(images))]
    for start in range(0, len(images), batch):
        heat, color = detector(images[start : start + batch].to(device, torch.float32))
        best, cls = heat.sigmoid().max(1)
        peak = (best == F.max_pool2d(best[:, None], 5, stride=1, padding=2)[:, 0]) & (best > threshold)
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

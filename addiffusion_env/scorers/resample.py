"""Resizing 8-bit pictures as Pillow does, to the byte, on tensors and on any device.

The published pipelines resize PIL pictures. Pillow resizes the rows, then the columns, and rounds to bytes after each.
Interpolating floats in one go, as torch does, gives other pixels: where noise shrinks, one in seven is a level off;
where it grows, some are 20 levels off, because nothing clips the overshoot between the two passes.
"""

from __future__ import annotations

from functools import lru_cache

import torch

PRECISION = 22
"""Bits after the binary point of Pillow's weights for 8-bit pictures (``PRECISION_BITS`` in its ``Resample.c``)."""

TOGETHER = 8  # pictures a pass: in float64, 1024 pixels a side, 8 of them are 200 MB


def _bilinear(x: torch.Tensor) -> torch.Tensor:
    return (1 - x.abs()).clamp(min=0)


def _bicubic(x: torch.Tensor, a: float = -0.5) -> torch.Tensor:
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


FILTERS = {"bilinear": (_bilinear, 1.0), "bicubic": (_bicubic, 2.0)}
"""Name -> the filter and how far it reaches, in pixels of the coarser grid."""


@lru_cache(maxsize=64)
def weights(before: int, after: int, interpolation: str) -> torch.Tensor:
    """(after, before) float64: what each pixel of a row of ``before`` adds to one of ``after``, at Pillow's precision.

    >>> [round(weight, 4) for weight in weights(4, 2, "bilinear")[0].tolist()]
    [0.4286, 0.4286, 0.1429, 0.0]
    """
    filter_, reach = FILTERS[interpolation]
    scale = before / after
    stretch = max(scale, 1.0)  # a shrinking filter covers all that falls into a pixel: antialiasing
    centre = (torch.arange(after, dtype=torch.float64)[:, None] + 0.5) * scale
    first = (centre - reach * stretch + 0.5).trunc().clamp(min=0)
    last = (centre + reach * stretch + 0.5).trunc().clamp(max=before)
    pixel = torch.arange(before, dtype=torch.float64)
    # Pillow counts from the first pixel of the window: (x + first - centre + 0.5), in this order, times 1 / stretch.
    values = filter_((pixel - centre + 0.5) * (1.0 / stretch))
    values = torch.where((pixel >= first) & (pixel < last), values, 0.0)
    values = values / values.sum(1, keepdim=True)
    fixed = (values * 2**PRECISION + torch.where(values < 0, -0.5, 0.5)).trunc()
    return fixed / 2**PRECISION


def resize_bytes(images: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """(B, 3, H, W) floats in [-1, 1] -> (B, 3, *size) float32 in [-1, 1], on the grid of 8-bit pixels.

    Equal to the byte to ``PIL.Image.resize`` of the picture saved as PNG. Without float64 (Apple's GPUs) a pixel may
    fall one level beside it.

    Args:
        images: pictures; rounded to bytes first.
        size: height and width.
        interpolation: one of :data:`FILTERS`.
    """
    return torch.cat([_resize(some, size, interpolation) for some in images.split(TOGETHER)])


def _resize(images: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    exact = torch.float32 if images.device.type == "mps" else torch.float64
    pixels = _to_bytes((images.float() + 1) * 127.5, half_even=True).to(exact)
    height, width = images.shape[-2:]
    if width != size[1]:
        pixels = _to_bytes(pixels @ weights(width, size[1], interpolation).to(pixels).T)
    if height != size[0]:
        pixels = _to_bytes(weights(height, size[0], interpolation).to(pixels) @ pixels)
    return pixels.float() / 127.5 - 1


def _to_bytes(values: torch.Tensor, half_even: bool = False) -> torch.Tensor:
    """Clips and rounds to 0 ... 255; halves go up, as Pillow's do, or to the even byte, as ours do when saved."""
    return (values.round() if half_even else (values + 0.5).floor()).clamp(0, 255)

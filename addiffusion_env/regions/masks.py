"""From maps over the picture to soft masks: normalise, keep the strongest cells, blur."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_blur(maps: Tensor, sigma: float) -> Tensor:
    """Blurs (B, H, W) maps with a separable Gaussian of standard deviation ``sigma`` cells; 0 leaves them alone.

    The kernel reaches three standard deviations, borders are reflected, a constant map stays constant.
    """
    if sigma == 0:
        return maps
    reach = min(math.ceil(3 * sigma), min(maps.shape[-2:]) - 1)
    offsets = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(maps[:, None], (reach, reach, reach, reach), mode="reflect")
    across = F.conv2d(padded, kernel[None, None, None, :])
    return F.conv2d(across, kernel[None, None, :, None])[:, 0]


def strongest(maps: Tensor, fraction: float) -> Tensor:
    """1 on the ``fraction`` of cells of each (B, H, W) map with the largest values, 0 elsewhere; at least one cell."""
    flat = maps.flatten(1)
    count = max(1, round(fraction * flat.shape[1]))
    chosen = torch.zeros_like(flat)
    chosen.scatter_(1, flat.topk(count, dim=1).indices, 1.0)
    return chosen.reshape(maps.shape)


def soft_masks(maps: Tensor, fraction: float, blur: float, size: tuple[int, int]) -> Tensor:
    """Maps (B, h, w) -> masks (B, 1, H, W) in [0, 1]: resized to ``size``, the strongest cells kept, blurred.

    The blurred mask is scaled back to a peak of 1, so that the heart of the region is redone in full.
    """
    if tuple(maps.shape[-2:]) != size:
        maps = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    blurred = gaussian_blur(strongest(maps, fraction), blur)
    peak = blurred.amax((1, 2), keepdim=True).clamp_min(1e-8)
    return (blurred / peak).clamp(0, 1)[:, None]


def attention_mask(
    attention: Tensor, positions: Sequence[int], fraction: float, blur: float, size: tuple[int, int]
) -> Tensor:
    """The region where a prompt's content tokens are attended to.

    Args:
        attention: (tokens, h, w) share of each cell's attention that goes to each token.
        positions: the content tokens; with none, the whole picture is the region.
        fraction: share of cells kept.
        blur: standard deviation in latent cells.
        size: (H, W) of the latents.

    Returns:
        (1, 1, H, W) mask in [0, 1].
    """
    if not positions:
        return torch.ones((1, 1, *size), device=attention.device)
    content = attention[list(positions)]
    # Each token's map on its own scale first: raw maps are dominated by whichever token is attended to everywhere.
    low, high = content.amin((1, 2), keepdim=True), content.amax((1, 2), keepdim=True)
    mean = ((content - low) / (high - low).clamp_min(1e-8)).mean(0, keepdim=True)
    return soft_masks(mean, fraction, blur, size)


def phrase_masks(maps: Tensor, fraction: float, blur: float, size: tuple[int, int]) -> Tensor:
    """(P, h, w) phrase-difference maps -> (P, 1, H, W) masks, one a phrase."""
    return soft_masks(maps, fraction, blur, size)

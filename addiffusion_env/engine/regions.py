"""Image regions that a refinement regenerates: masks from attention maps and from phrase-difference maps."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from addiffusion_env.engine.process import RefineConfig
from addiffusion_env.prompts import Prompt


def gaussian_blur(maps: Tensor, sigma: float) -> Tensor:
    """Blurs (B, H, W) maps with a separable Gaussian of standard deviation ``sigma`` cells; 0 leaves them unchanged.

    The kernel covers three standard deviations, borders are reflected, a constant map stays constant.
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

    The blurred mask is rescaled to a peak of 1, so that the centre of the region is fully regenerated.
    """
    if tuple(maps.shape[-2:]) != size:
        maps = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    blurred = gaussian_blur(strongest(maps, fraction), blur)
    peak = blurred.amax((1, 2), keepdim=True).clamp_min(1e-8)
    return (blurred / peak).clamp(0, 1)[:, None]


def attention_mask(
    attention: Tensor, positions: Sequence[int], fraction: float, blur: float, size: tuple[int, int]
) -> Tensor:
    """The region that attends most to a prompt's content tokens.

    Args:
        attention: (tokens, h, w) share of each cell's attention that goes to each token.
        positions: indices of the content tokens; if empty, the region is the whole image.
        fraction: fraction of cells kept.
        blur: standard deviation in latent cells.
        size: (H, W) of the latents.

    Returns:
        (1, 1, H, W) mask in [0, 1].
    """
    if not positions:
        return torch.ones((1, 1, *size), device=attention.device)
    content = attention[list(positions)]
    # Each map is normalised first: raw maps are dominated by whichever token is attended to everywhere.
    low, high = content.amin((1, 2), keepdim=True), content.amax((1, 2), keepdim=True)
    mean = ((content - low) / (high - low).clamp_min(1e-8)).mean(0, keepdim=True)
    return soft_masks(mean, fraction, blur, size)


def pick_phrase(maps: Tensor, config: RefineConfig, size: tuple[int, int]) -> Tensor:
    """(P, h, w) phrase-difference maps -> (1, 1, H, W) mask of the weakest phrase, or of all phrases together."""
    masks = soft_masks(maps, config.fraction, config.blur, size)
    if config.region == "union":
        return masks.amax(0, keepdim=True)
    weakest = int(maps.flatten(1).amax(1).argmin())
    return masks[weakest : weakest + 1]


# Separators between the objects of a prompt: commas, conjunctions and spatial prepositions.
SPLIT = re.compile(
    r"\s*(?:,|\band\b|\bwith\b|\bnext to\b|\b(?:to the )?(?:left|right) of\b|\bon top of\b|\bin front of\b|\bbehind\b"
    r"|\babove\b|\bbelow\b|\bunder\b|\bon\b|\bin\b|\bnear\b)\s*"
)
OPENING = re.compile(r"^(?:an?|the)?\s*(?:photo|picture|image|painting|drawing|illustration) of\s+", re.IGNORECASE)


def phrases_of(prompt: Prompt) -> tuple[str, ...]:
    """The phrases that each name one object: the prompt's annotation, or its text split at conjunctions and relations.

    >>> phrases_of(Prompt.of("a photo of a red cup left of a dog"))
    ('a red cup', 'a dog')
    """
    if prompt.phrases:
        return prompt.phrases
    body = OPENING.sub("", prompt.text.strip())
    found = tuple(part for part in SPLIT.split(body) if part)
    return found or (prompt.text,)


def without(text: str, phrase: str) -> str:
    """The prompt without one phrase and without the separator that it leaves dangling.

    >>> without("a photo of a red cup and a dog", "a red cup")
    'a photo of a dog'
    >>> without("a photo of a cat left of a dog", "a dog")
    'a photo of a cat'
    """
    head, found, tail = text.partition(phrase)
    if not found:
        return text
    opening = OPENING.match(head)
    prefix, body = (opening.group(0), head[opening.end() :]) if opening else ("", head)
    parts = [part.strip() for part in (body, tail)]
    # A separator with nothing left on one side is removed as well.
    left = re.sub(SPLIT.pattern + r"$", "", " " + parts[0] + " ").strip() if not parts[1] else parts[0]
    right = re.sub("^" + SPLIT.pattern, "", " " + parts[1] + " ").strip() if not parts[0] else parts[1]
    joined = " ".join(piece for piece in (prefix.strip(), left, right) if piece)
    return re.sub(r"\s*,\s*and\b", " and", re.sub(r"\s+,", ",", joined))


def evidence_of(maps: Tensor) -> np.ndarray:
    """Summarises the phrase maps of an unfinished image in three numbers in [0, 1].

    Args:
        maps: (P, H, W) effect of each phrase on each cell, non-negative.

    Returns:
        (3,) float32: ratio of the weakest phrase's peak to the strongest's; overlap of two phrases (largest cosine
        similarity of two maps; 0 for a single phrase); share of the total effect in the strongest eighth of the
        cells, averaged over phrases.
    """
    flat = maps.flatten(1).cpu().double()  # in this order: MPS has no float64
    peaks = flat.amax(1)
    unit = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
    cosines = unit @ unit.T
    cosines.fill_diagonal_(0.0)
    strongest = flat.topk(max(1, flat.shape[1] // 8), dim=1).values.sum(1) / flat.sum(1).clamp_min(1e-12)
    weakest = float(peaks.min() / peaks.max().clamp_min(1e-12))
    return np.array([weakest, float(cosines.max()), float(strongest.mean())], np.float32).clip(0, 1)

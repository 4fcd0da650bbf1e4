"""The phrases of a prompt, and the prompt without one of them."""

from __future__ import annotations

import re

import numpy as np
from torch import Tensor

from addiffusion_env.prompts.base import Prompt

# What separates things to draw: commas, conjunctions and spatial words.
SPLIT = re.compile(
    r"\s*(?:,|\band\b|\bwith\b|\bnext to\b|\b(?:to the )?(?:left|right) of\b|\bon top of\b|\bin front of\b|\bbehind\b"
    r"|\babove\b|\bbelow\b|\bunder\b|\bon\b|\bin\b|\bnear\b)\s*"
)
OPENING = re.compile(r"^(?:an?|the)?\s*(?:photo|picture|image|painting|drawing|illustration) of\s+", re.IGNORECASE)


def phrases_of(prompt: Prompt) -> tuple[str, ...]:
    """The phrases that each name a thing to draw: the source's own, or the text split at conjunctions and relations.

    >>> phrases_of(Prompt.of("a photo of a red cup left of a dog"))
    ('a red cup', 'a dog')
    """
    if prompt.phrases:
        return prompt.phrases
    body = OPENING.sub("", prompt.text.strip())
    found = tuple(part for part in SPLIT.split(body) if part)
    return found or (prompt.text,)


def without(text: str, phrase: str) -> str:
    """The prompt with one phrase taken out and the seam mended.

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
    # A separator that is left with nothing on one side goes too.
    left = re.sub(SPLIT.pattern + r"$", "", " " + parts[0] + " ").strip() if not parts[1] else parts[0]
    right = re.sub("^" + SPLIT.pattern, "", " " + parts[1] + " ").strip() if not parts[0] else parts[1]
    joined = " ".join(piece for piece in (prefix.strip(), left, right) if piece)
    return re.sub(r"\s*,\s*and\b", " and", re.sub(r"\s+,", ",", joined))


def evidence_of(maps: Tensor) -> np.ndarray:
    """What phrase maps say of a picture in the making, as three numbers in [0, 1].

    Args:
        maps: (P, H, W) effect of each phrase on each cell, not negative.

    Returns:
        (3,) float32: the weakest phrase's peak over the strongest's; how much two phrases act on the same cells
        (largest cosine of two maps; 0 for a single phrase); the share of all effect that lies in the strongest eighth
        of the cells, averaged over phrases.
    """
    flat = maps.flatten(1).cpu().double()  # in this order: MPS has no float64
    peaks = flat.amax(1)
    unit = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
    cosines = unit @ unit.T
    cosines.fill_diagonal_(0.0)
    strongest = flat.topk(max(1, flat.shape[1] // 8), dim=1).values.sum(1) / flat.sum(1).clamp_min(1e-12)
    weakest = float(peaks.min() / peaks.max().clamp_min(1e-12))
    return np.array([weakest, float(cosines.max()), float(strongest.mean())], np.float32).clip(0, 1)

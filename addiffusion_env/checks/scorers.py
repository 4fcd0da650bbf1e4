"""Contracts of scorers and embedders."""

from __future__ import annotations

from functools import partial

import torch

from addiffusion_env.checks.base import identity_is_held, refuses, require
from addiffusion_env.errors import ImageRangeError, PromptError
from addiffusion_env.prompts import Prompt
from addiffusion_env.prompts.emoji_grammar import emoji_prompt
from addiffusion_env.scorers import Embedder, Scorer

TEXTS = ("a photo of a dog", "a photo of a red cup and a blue clock", "a photo of two cats")
SIDE = 64


def it_says_what_it_is(scorer: Scorer | Embedder) -> None:
    """It has a registry name, a loader, a docstring and, if it scores, a unit."""
    kind = type(scorer)
    require(bool(getattr(kind, "name", "")), f"{kind.__name__} has no name", "set the class attribute name")
    require(bool((kind.__doc__ or "").strip()), f"{kind.__name__} has no docstring", "explain the score")
    loads = callable(getattr(kind, "from_pretrained", None))
    require(loads, "there is no from_pretrained", "define it: scorers are loaded by it")
    if isinstance(scorer, Scorer):
        require(bool(scorer.unit), f"{kind.__name__} has no unit", "set one for column heads, such as 'cosine'")


def numbers_are_finite(scorer: Scorer | Embedder) -> None:
    """B images give B finite float32 numbers, or B unit vectors, on the CPU."""
    found = _of(scorer, _images(), _prompts())
    rows = (len(TEXTS),) if isinstance(scorer, Scorer) else (len(TEXTS), scorer.dim)
    shape, plain = tuple(found.shape), found.dtype == torch.float32 and found.device.type == "cpu"
    require(shape == rows, f"the result is {shape}, expected {rows}", "return one row per image")
    require(plain, f"{found.dtype} on {found.device}", "return float32 on the CPU")
    finite = bool(torch.isfinite(found).all())
    require(finite, f"not all numbers are finite: {found}", "raise an error for what cannot be scored")
    if isinstance(scorer, Embedder):
        lengths = scorer.embed_images(_images()).norm(dim=1)
        unit = bool(((lengths - 1).abs() < 1e-3).all())
        require(unit, f"vectors are {lengths.tolist()} long", "normalise to unit length")


def an_image_is_scored_alone(scorer: Scorer | Embedder) -> None:
    """An image's score depends neither on the other images of the batch nor on their order."""
    images, prompts = _images(), _prompts()
    together = _of(scorer, images, prompts)
    backwards = _of(scorer, images.flip(0), prompts[::-1]).flip(0)
    alone = torch.cat([_of(scorer, images[i : i + 1], prompts[i : i + 1]) for i in range(len(prompts))])
    for other, how in ((backwards, "in another order"), (alone, "one by one")):
        apart = float((together - other).abs().max()) / max(1e-6, float(together.abs().max()))
        require(apart < 2e-3, f"numbers {how} differ by {apart:.2g} of their size", "make rows independent")


def no_gradients_are_kept(scorer: Scorer | Embedder) -> None:
    """Scoring keeps no graph and leaves the images as they were."""
    images = _images()
    before = images.clone()
    found = _of(scorer, images.requires_grad_(True), _prompts())
    require(not found.requires_grad, "the result requires gradients", "score under torch.no_grad()")
    require(torch.equal(images.detach(), before), "the images were changed", "work on a copy")


def bad_images_are_refused(scorer: Scorer | Embedder) -> None:
    """Bytes, values outside [-1, 1], missing batch or another number of prompts are refused."""
    images, prompts = _images(), _prompts()
    for bad, what in ((images.byte(), "byte images"), (images * 255, "values of 255"), (images[0], "no batch")):
        refuses(ImageRangeError, partial(_of, scorer, bad, prompts), what)
    if isinstance(scorer, Scorer):
        refuses(PromptError, lambda: scorer.score(images, prompts[:1]), "three images with one prompt")


def records_know_it(scorer: Scorer | Embedder) -> None:
    """Its identity is plain JSON, does not change with use, and changes with its weights."""
    identity_is_held(scorer, lambda: _of(scorer, _images(), _prompts()))


SCORER_CONTRACTS = (
    it_says_what_it_is,
    numbers_are_finite,
    an_image_is_scored_alone,
    no_gradients_are_kept,
    bad_images_are_refused,
    records_know_it,
)
"""Subject: a loaded :class:`Scorer` or :class:`Embedder`."""


def _of(scorer: Scorer | Embedder, images: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
    return scorer.score(images, prompts) if isinstance(scorer, Scorer) else scorer.embed_images(images)


def _prompts() -> list[Prompt]:
    return [emoji_prompt(text) for text in TEXTS]


def _images() -> torch.Tensor:
    """(3, 3, 64, 64) smooth random images in [-1, 1]."""
    coarse = torch.rand(len(TEXTS), 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear").clamp(-1, 1)

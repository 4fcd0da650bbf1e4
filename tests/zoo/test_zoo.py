"""Each tiny pipeline builds, generates an image of the declared size, follows its prompt, and is called as declared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from zoo import REFUSED, ZOO

PROMPT, OTHER = "a red cup left of the dog", "a photo of the cat on a sofa"
NETWORK_INPUTS = ("hidden_states", "sample", "x", "r")
ENTRIES = [pytest.param(name, marks=() if builder.fast else pytest.mark.slow) for name, builder in ZOO.items()]


@contextmanager
def counted(networks) -> Iterator[list[int]]:
    """Collects the rows of each call of the networks, in order."""
    rows: list[int] = []

    def count(module, args, kwargs):
        rows.append(len(args[0] if args else next(kwargs[name] for name in NETWORK_INPUTS if name in kwargs)))

    handles = [network.register_forward_pre_hook(count, with_kwargs=True) for network in networks]
    yield rows
    for handle in handles:
        handle.remove()


def drawn(builder, pipe):
    """The image of ``PROMPT``, after a check of the calls of the denoisers."""
    with counted([getattr(pipe, part) for part in builder.denoisers]) as rows:
        image = builder.draw(pipe, PROMPT)
    assert tuple(rows) == builder.calls * (len(rows) // len(builder.calls)) and len(rows) >= 2
    assert image.isfinite().all()
    return image


@pytest.mark.parametrize("name", ENTRIES)
def test_tiny_pipeline(name):
    builder = ZOO[name]
    pipe = builder()
    image = drawn(builder, pipe)
    assert image.shape[0] == 1 and image.shape[2:] == builder.size
    assert (image - builder.draw(pipe, OTHER)).abs().max() > 1e-3
    assert torch.equal(image, builder.draw(builder(), PROMPT))


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_pipeline_that_is_no_backbone(name):
    drawn(REFUSED[name], REFUSED[name]())


def test_the_fast_ones_cover_each_kind_of_step():
    fast = [builder for builder in ZOO.values() if builder.fast]
    assert len(fast) == 8
    assert {builder.calls for builder in fast} >= {(1,), (2,), (3,), (1, 1)}
    assert {builder.denoisers for builder in fast} >= {("unet",), ("transformer",)}

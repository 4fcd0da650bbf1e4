"""Rows of a batch that are read only when needed equal slices that were made at once."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch

from addiffusion_env.backbones.batches import Conditioning, History, Latents


def batch(size, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 2, 3, 3, generator=draw)
    sigma = torch.rand(size, generator=draw, dtype=torch.float64)
    latents = Latents(x, sigma, History(x + 1, sigma + 1, x + 2, sigma + 2, tuple({"index": i} for i in range(size))))
    negative = torch.zeros(1, 4, 5).expand(size, -1, -1)
    return latents, Conditioning({"text": x.flatten(1), "negative": negative}, tuple((i,) for i in range(size)))


def numbers(value):
    if isinstance(value, Latents):
        inner = value.history
        tensors = (value.x, value.sigma, inner.x0, inner.sigma, inner.older_x0, inner.older_sigma)
        return [part.tolist() for part in tensors], inner.scheduler
    return {name: part.tolist() for name, part in value.tensors.items()}, value.content, value.requests


def sliced(value, index):
    """One row by plain slicing."""
    at = slice(index, index + 1)
    if isinstance(value, Latents):
        h = value.history
        history = History(h.x0[at], h.sigma[at], h.older_x0[at], h.older_sigma[at], h.scheduler[at])
        return Latents(value.x[at], value.sigma[at], history)
    return Conditioning({name: part[at] for name, part in value.tensors.items()}, value.content[at], value.requests[at])


PLACES = [
    [(0, 0), (0, 1), (0, 2)],  # a whole batch in its order
    [(0, 2), (0, 0)],
    [(1, 0), (0, 1), (1, 2), (0, 1)],  # rows of two batches in turn, one of them twice
    [(0, 1)],
]


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("kind", [0, 1], ids=["latents", "conditioning"])
def test_joined_rows_equal_joined_slices(kind, places):
    batches = [batch(3, 0)[kind], batch(3, 1)[kind]]
    joined = type(batches[0]).cat([batches[number].row(at) for number, at in places])
    assert len(joined) == len(places)
    for row, (number, at) in enumerate(places):
        expected = numbers(sliced(batches[number], at))
        assert numbers(joined.row(row)) == numbers(sliced(joined, row)) == expected
    whole = type(batches[0]).cat([batches[0].row(0), batches[1]])  # a row and a whole batch
    assert [numbers(sliced(whole, row)) for row in range(4)] == [
        numbers(sliced(batches[0], 0)),
        *(numbers(sliced(batches[1], row)) for row in range(3)),
    ]


def test_the_rows_of_a_batch_in_its_order_are_that_batch():
    latents, _ = batch(3, 0)
    assert Latents.cat([latents.row(at) for at in range(3)]) is latents


def test_a_changed_row_keeps_its_change_when_it_is_joined():
    latents, _ = batch(2, 0)
    changed = replace(latents.row(1), x=torch.ones(1, 2, 3, 3))
    joined = Latents.cat([latents.row(0), changed])
    assert joined.x[1].eq(1).all() and torch.equal(joined.x[0], latents.x[0])
    assert torch.equal(joined.sigma, latents.sigma)


def test_a_stored_row_has_left_its_batch():
    latents, _ = batch(3, 0)
    for stored in (
        pickle.loads(pickle.dumps(latents.row(2))),
        copy.deepcopy(latents.row(2)),
        copy.copy(latents.row(2)),
    ):
        assert numbers(stored) == numbers(sliced(latents, 2)) and "_place" not in vars(stored)


def test_a_missing_attribute_of_a_row_is_named():
    with pytest.raises(AttributeError, match="Latents has no attribute 'noise'"):
        _ = batch(1, 0)[0].noise

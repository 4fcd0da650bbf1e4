"""Joins the network calls of several open calls into one, and splits its output.

The batch axis of each argument is measured: the pipeline's first step is run for one image and for two, and the axis
that doubles is the batch axis (:func:`learn`). Everything else must be equal in the calls that are joined. Rows are
ordered by branch, ``[u1 u2 c1 c2]``, as in the pipelines' own calls for two images: networks that split their batch
(perturbed-attention guidance) depend on this order.
"""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from addiffusion_env.backbones.calls.open_call import NetworkRequest
from addiffusion_env.backbones.calls.trees import entries, rebuilt
from addiffusion_env.backbones.fingerprint import LruCache, bytes_of


@dataclass(frozen=True)
class Batched:
    """A tensor whose ``axis`` is the batch axis (images times branches)."""

    axis: int


@dataclass(frozen=True)
class BatchedList:
    """A list with one entry per image (times branches)."""


@dataclass(frozen=True)
class Node:
    """A container; ``parts`` are the layouts of its entries, in order."""

    parts: tuple[Any, ...]


CONSTANT = "constant"
"""A value that does not depend on the number of images."""


def learn(one: Any, two: Any) -> Any:
    """The batch layout of a value, from its form for one image and for two.

    Raises:
        ValueError: when the two differ other than by a doubled axis or list.
    """
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        changed = [axis for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b]
        if not changed:
            return CONSTANT
        if len(changed) > 1 or two.shape[changed[0]] != 2 * one.shape[changed[0]]:
            raise ValueError(f"shapes {tuple(one.shape)} and {tuple(two.shape)}")
        return Batched(changed[0])
    mine, other = entries(one), entries(two)
    if mine is None or other is None:
        return CONSTANT
    if len(mine) != len(other):
        if len(other) != 2 * len(mine) or not isinstance(one, list | tuple):
            raise ValueError(f"{len(mine)} and {len(other)} entries")
        return BatchedList()
    parts = tuple(learn(a, b) for a, b in zip(mine, other, strict=True))
    plain = all(part is CONSTANT for part in parts) and not any(isinstance(entry, Tensor) for entry in mine)
    return CONSTANT if plain else Node(parts)


def rows_of(spec: Any, value: Any) -> int | None:
    """The number of rows of a value; ``None`` if it has no batch axis."""
    if isinstance(spec, Batched):
        return int(value.shape[spec.axis])
    if isinstance(spec, BatchedList):
        return len(value)
    if isinstance(spec, Node):
        for part, entry in zip(spec.parts, entries(value) or (), strict=True):
            if (rows := rows_of(part, entry)) is not None:
                return rows
    return None


def is_time(value: Any) -> bool:
    """Whether a constant is a number in a tensor: a timestep or scale, which may become one value per row."""
    return isinstance(value, Tensor) and value.numel() == 1 and value.ndim <= 1


def tree_key(spec: Any, value: Any, constant: Callable[[Any], Any]) -> Any:
    """A key that is equal for values that can be joined.

    Args:
        spec: their batch layout.
        value: the value.
        constant: returns a hashable key of a value that must be equal.
    """
    if isinstance(spec, Batched):
        shape = list(value.shape)
        shape[spec.axis] = -1
        return (tuple(shape), value.dtype)
    if isinstance(spec, BatchedList):
        # Entries may differ in length: the network itself pads them.
        return tuple(sorted({(e.ndim, e.dtype) if isinstance(e, Tensor) else constant(e) for e in value}, key=str))
    if isinstance(spec, Node):
        return tuple(tree_key(p, e, constant) for p, e in zip(spec.parts, entries(value) or (), strict=True))
    if is_time(value):
        # Integer and fractional timesteps are joined: both are converted to floating point.
        return ("number", value.ndim, value.dtype if value.is_floating_point() else torch.float32)
    return constant(value)


@dataclass(slots=True, eq=False)
class Lanes:
    """A value that differs between the images of a request.

    Attributes:
        values: one value per image; tensors of equal shape are stacked, (lanes, ...).
        flat: the images' values along a batch axis, by axis, once they were joined.
    """

    values: Sequence[Any] | Tensor
    flat: dict[int, Tensor] = field(default_factory=dict)

    def along(self, axis: int) -> Tensor:
        """The values joined along a batch axis, by branch."""
        if axis not in self.flat:
            self.flat[axis] = _stacked(self, len(self.values), axis + 1).flatten(axis, axis + 1)
        return self.flat[axis]


def first_of(value: Any) -> Any:
    """The value of the first image."""
    if isinstance(value, Lanes):
        return value.values[0]
    parts = entries(value)
    return value if parts is None else rebuilt(value, [first_of(part) for part in parts])


def spread(value: Any, lanes: int) -> list[Any]:
    """The values of each of ``lanes`` images."""
    if isinstance(value, Lanes):
        return list(value.values)
    parts = entries(value)
    if lanes == 1 or parts is None:
        return [value] * lanes
    columns = [spread(part, lanes) for part in parts]
    return [rebuilt(value, [column[lane] for column in columns]) for lane in range(lanes)]


def _stacked(value: Any, lanes: int, axis: int) -> Tensor:
    """The images' values along an axis."""
    if not isinstance(value, Lanes):
        return value.unsqueeze(axis).expand(*value.shape[:axis], lanes, *value.shape[axis:])
    values = value.values
    return values.movedim(0, axis) if isinstance(values, Tensor) else torch.stack(list(values), dim=axis)


def joined(spec: Any, values: Sequence[Any], rows: Sequence[int], sizes: Sequence[int], apart: bool = False) -> Any:
    """Joins the values of several requests for one call.

    If all images have the same number of rows, rows are ordered by branch.

    Args:
        spec: their batch layout.
        values: one value per request.
        rows: rows of each image.
        sizes: number of images of each request.
        apart: expand timesteps to one floating-point value per row even if all are equal, so that a compiled network
            has only one form of call.
    """
    first = values[0]
    even = all(count == rows[0] for count in rows)
    if isinstance(spec, Batched) and even:
        if len(values) == 1 and isinstance(first, Lanes):
            return first.along(spec.axis)
        after = spec.axis + 1
        parts = [_stacked(value, size, after) for value, size in zip(values, sizes, strict=True)]
        return (torch.cat(parts, dim=after) if len(parts) > 1 else parts[0]).flatten(spec.axis, after)
    if isinstance(spec, Node):
        columns = zip(*(entries(value) or () for value in values), strict=True)
        parts = [joined(part, column, rows, sizes, apart) for part, column in zip(spec.parts, columns, strict=True)]
        return rebuilt(first, parts)
    first = first_of(first)
    if spec is CONSTANT and not is_time(first):
        return first
    flat = [part for value, size in zip(values, sizes, strict=True) for part in spread(value, size)]
    if isinstance(spec, Batched):
        return torch.cat(flat, dim=spec.axis)
    if isinstance(spec, BatchedList):
        if not even:
            return type(first)(entry for value in flat for entry in value)
        return type(first)(value[branch] for branch in range(rows[0]) for value in flat)
    if not apart and all(value is first for value in flat):
        return first
    numbers = torch.cat([value.reshape(1) for value in flat])
    if not apart and bool((numbers == numbers[0]).all()):
        return first
    if apart and not first.is_floating_point():
        numbers = numbers.float()
    if even:
        return numbers.repeat(rows[0])
    return numbers.repeat_interleave(torch.tensor(rows, device=numbers.device), output_size=sum(rows))


def split(spec: Any, value: Any, rows: Sequence[int], sizes: Sequence[int]) -> list[Any]:
    """Undoes :func:`joined` for an answer: one for each request, with tensors (images, ...) where it has several."""
    ends = list(itertools.accumulate(sizes))
    places = list(zip((end - size for end, size in zip(ends, sizes, strict=True)), sizes, strict=True))
    even = all(count == rows[0] for count in rows)
    if isinstance(spec, Batched):
        if even:
            parts: Any = value.unflatten(spec.axis, (rows[0], len(rows))).movedim(spec.axis + 1, 0)
        else:
            parts = value.split(list(rows), dim=spec.axis)
        return [parts[at] if size == 1 else _together(parts[at : at + size]) for at, size in places]
    if isinstance(spec, BatchedList):
        starts = [sum(rows[:lane]) for lane in range(len(rows))]
        own = [
            value[lane :: len(rows)] if even else value[start : start + count]
            for lane, (start, count) in enumerate(zip(starts, rows, strict=True))
        ]
        return [
            own[at] if size == 1 else [torch.stack(branch) for branch in zip(*own[at : at + size], strict=True)]
            for at, size in places
        ]
    if isinstance(spec, Node):
        columns = [split(p, e, rows, sizes) for p, e in zip(spec.parts, entries(value) or (), strict=True)]
        return [rebuilt(value, [column[at] for column in columns]) for at in range(len(sizes))]
    return [value] * len(sizes)


def _together(parts: Any) -> Tensor:
    return parts if isinstance(parts, Tensor) else torch.stack(parts)


@dataclass(frozen=True)
class Site:
    """What was learned of one kind of network call.

    Attributes:
        args: of its positional arguments.
        kwargs: of its keyword arguments.
        output: of its answer.
    """

    args: Any
    kwargs: Any
    output: Any


Form = tuple
"""The structure of a request, by which what was learned of it is found again."""


def form_of(request: NetworkRequest) -> Form:
    """Structure of a request: names, containers and numbers of dimensions, without sizes."""
    if request.form is None:
        request.form = (request.site[0], _form(request.args), _form(request.kwargs))
    return request.form


def _form(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.ndim
    if isinstance(value, Mapping):
        return (*value, *(_form(entry) for entry in value.values()))
    if isinstance(value, list | tuple):
        # The length of a list may be the number of images.
        return ("list", *dict.fromkeys(_form(entry) for entry in value))
    return value is None


class Digests:
    """Hashable keys of values that must be equal in joined calls; large tensors are hashed once until they change.

    Two different objects that are neither tensors, images nor plain values are never equal: a cache of keys and values
    belongs to one image.
    """

    KEPT = 4096

    def __init__(self) -> None:
        self._known: LruCache[tuple[weakref.ref[Tensor], Any]] = LruCache(self.KEPT)

    def __call__(self, value: Any) -> Any:
        """The key of a constant."""
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray):
            return (value.shape, value.dtype.str, hashlib.sha256(value.tobytes()).digest())
        if isinstance(value, Image.Image):
            return (value.mode, value.size, str(value.getpalette()), hashlib.sha256(value.tobytes()).digest())
        if isinstance(value, Mapping):
            return tuple((name, self(entry)) for name, entry in value.items())
        if isinstance(value, list | tuple):
            return tuple(self(entry) for entry in value)
        if value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype | torch.device):
            return (type(value), value)
        return id(value)

    def _tensor(self, value: Tensor) -> Any:
        try:
            key = (id(value), value._version)
        except RuntimeError:  # inference tensors have no version counter
            return self._read(value)
        known = self._known.get(key)
        if known is None or known[0]() is not value:  # another tensor had this id
            known = self._known[key] = (weakref.ref(value), self._read(value))
        return known[1]

    @staticmethod
    def _read(value: Tensor) -> Any:
        return (value.shape, value.dtype, value.device, hashlib.sha256(bytes_of(value)).digest())


def group_key(site: Site | None, request: NetworkRequest, digests: Digests, uneven: bool) -> Any:
    """A key that is equal for requests that can share one call; requests of unknown form are never joined."""
    rows = None if site is None else request_rows(site, request)
    if site is None or rows is None:
        return ("alone", id(request))
    args, kwargs = (request.args, request.kwargs) if request.lanes == 1 else first_of((request.args, request.kwargs))
    return (
        request.site[0],
        id(request.module),
        None if uneven else rows,
        tree_key(site.args, args, digests),
        tuple(kwargs),
        tree_key(site.kwargs, kwargs, digests),
    )


def request_rows(site: Site, request: NetworkRequest) -> int | None:
    """Number of rows per image of a request."""
    args, kwargs = (request.args, request.kwargs) if request.lanes == 1 else first_of((request.args, request.kwargs))
    rows = rows_of(site.args, args)
    return rows_of(site.kwargs, kwargs) if rows is None else rows


def joined_request(
    site: Site, requests: Sequence[NetworkRequest], rows: Sequence[int], apart: bool = False
) -> tuple[tuple, dict]:
    """The arguments of the joined call; see :func:`joined`."""
    sizes = [request.lanes for request in requests]
    args = joined(site.args, [request.args for request in requests], rows, sizes, apart)
    kwargs = joined(site.kwargs, [request.kwargs for request in requests], rows, sizes, apart)
    return args, kwargs

"""Joining the network calls of several open calls into one, and splitting its answer.

Which axis of which argument counts images is not guessed but learned: the pipeline's first step is run for one image
and for two, and what doubled is the batch axis (:func:`learn`). Everything else must be equal in the calls that are
joined. Rows are laid out branch by branch, ``[u1 u2 c1 c2]``, as the pipelines themselves lay out two images: networks
that take their batch apart (perturbed-attention guidance) depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from addiffusion_env.backbones.calls.open_call import NetworkRequest
from addiffusion_env.backbones.calls.trees import entries, rebuilt
from addiffusion_env.lru import LruCache


@dataclass(frozen=True)
class Batched:
    """A tensor whose ``axis`` counts images (times branches)."""

    axis: int


@dataclass(frozen=True)
class Listed:
    """A list with an entry an image (times branches)."""


@dataclass(frozen=True)
class Node:
    """A container; ``parts`` are what was learned of its entries, in order."""

    parts: tuple[Any, ...]


CONSTANT = "constant"
"""What did not change with the number of images."""


def learn(one: Any, two: Any) -> Any:
    """What of a value counts images, from its form for one image and for two.

    Raises:
        ValueError: when the two differ in another way than by a doubled axis or list.
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
        return Listed()
    parts = tuple(learn(a, b) for a, b in zip(mine, other, strict=True))
    plain = all(part is CONSTANT for part in parts) and not any(isinstance(entry, Tensor) for entry in mine)
    return CONSTANT if plain else Node(parts)


def rows_of(spec: Any, value: Any) -> int | None:
    """How many rows a value has; ``None`` if nothing in it counts images."""
    if isinstance(spec, Batched):
        return int(value.shape[spec.axis])
    if isinstance(spec, Listed):
        return len(value)
    if isinstance(spec, Node):
        for part, entry in zip(spec.parts, entries(value) or (), strict=True):
            if (rows := rows_of(part, entry)) is not None:
                return rows
    return None


def is_time(value: Any) -> bool:
    """Whether a constant is a number in a tensor: a time or scale, which may become one a row."""
    return isinstance(value, Tensor) and value.numel() == 1 and value.ndim <= 1


def tree_key(spec: Any, value: Any, constant: Callable[[Any], Any]) -> Any:
    """Equal for values that can be joined.

    Args:
        spec: what was learned of them.
        value: one of them.
        constant: makes a hashable key of what must be equal.
    """
    if isinstance(spec, Batched):
        shape = list(value.shape)
        shape[spec.axis] = -1
        return (tuple(shape), value.dtype)
    if isinstance(spec, Listed):
        # Entries may differ in length: the network itself pads them.
        return tuple(sorted({(e.ndim, e.dtype) if isinstance(e, Tensor) else constant(e) for e in value}, key=str))
    if isinstance(spec, Node):
        return tuple(tree_key(p, e, constant) for p, e in zip(spec.parts, entries(value) or (), strict=True))
    if is_time(value):
        # A whole timestep is joined with one between two: both are read as floating-point numbers.
        return ("number", value.ndim, value.dtype if value.is_floating_point() else torch.float32)
    return constant(value)


def joined(spec: Any, values: Sequence[Any], rows: Sequence[int], apart: bool = False) -> Any:
    """Many values as one, for a joined call of ``sum(rows)`` rows.

    With the same number of rows in each they are laid out branch by branch. ``apart`` gives each row its own time also
    where all are the same, as floating-point numbers: a compiled network has one form of call then.
    """
    first = values[0]
    if isinstance(spec, Batched):
        if rows[0] == 1 or any(count != rows[0] for count in rows):
            return torch.cat(list(values), dim=spec.axis)
        stacked = torch.stack(list(values), dim=spec.axis + 1)
        return stacked.flatten(spec.axis, spec.axis + 1)
    if isinstance(spec, Listed):
        if any(count != rows[0] for count in rows):
            return type(first)(entry for value in values for entry in value)
        return type(first)(value[branch] for branch in range(rows[0]) for value in values)
    if isinstance(spec, Node):
        columns = zip(*(entries(value) or () for value in values), strict=True)
        return rebuilt(first, [joined(p, column, rows, apart) for p, column in zip(spec.parts, columns, strict=True)])
    if is_time(first) and (apart or any(value.item() != first.item() for value in values[1:])):
        numbers = [value.reshape(1) for value in values]
        if apart and not first.is_floating_point():
            numbers = [number.float() for number in numbers]
        if any(count != rows[0] for count in rows):
            return torch.cat([number.expand(count) for number, count in zip(numbers, rows, strict=True)])
        return torch.cat(numbers).repeat(rows[0])
    return first


def split(spec: Any, value: Any, rows: Sequence[int]) -> list[Any]:
    """Undoes :func:`joined` for an answer."""
    lanes = len(rows)
    if isinstance(spec, Batched):
        if any(count != rows[0] for count in rows):
            return list(value.split(list(rows), dim=spec.axis))
        if rows[0] == 1:
            return list(value.split(1, dim=spec.axis))
        parts = value.unflatten(spec.axis, (rows[0], lanes))
        return list(parts.unbind(spec.axis + 1))
    if isinstance(spec, Listed):
        if any(count != rows[0] for count in rows):
            ends = [sum(rows[: lane + 1]) for lane in range(lanes)]
            return [value[end - count : end] for end, count in zip(ends, rows, strict=True)]
        return [value[lane::lanes] for lane in range(lanes)]
    if isinstance(spec, Node):
        columns = [split(p, e, rows) for p, e in zip(spec.parts, entries(value) or (), strict=True)]
        return [rebuilt(value, [column[lane] for column in columns]) for lane in range(lanes)]
    return [value] * lanes


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
    """Names, containers and numbers of dimensions; no sizes."""
    if request.form is None:
        request.form = (request.site[0], _form(request.args), _form(request.kwargs))
    return request.form


def _form(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.ndim
    if isinstance(value, Mapping):
        return (*value, *(_form(entry) for entry in value.values()))
    if isinstance(value, list | tuple):
        # The length of a list may be its number of images.
        return ("list", *dict.fromkeys(_form(entry) for entry in value))
    return value is None


class Digests:
    """Hashable keys of what must be equal in joined calls; large tensors are read once, while nothing changes them.

    Two different objects that are neither tensors nor plain values are never equal: a cache of keys and values belongs
    to one image.
    """

    KEPT = 4096

    def __init__(self) -> None:
        self._known: LruCache[tuple[Tensor, Any]] = LruCache(self.KEPT)

    def __call__(self, value: Any) -> Any:
        """The key of a constant."""
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray):
            return (value.shape, value.dtype.str, value.tobytes())
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
        except RuntimeError:  # inference tensors keep no count of their changes
            return self._read(value)
        known = self._known.get(key)
        if known is None or known[0] is not value:
            # The tensor is kept, so that its id is not another's.
            known = self._known[key] = (value, self._read(value))
        return known[1]

    @staticmethod
    def _read(value: Tensor) -> Any:
        plain = value.detach().cpu().contiguous()
        return (
            value.shape,
            value.dtype,
            value.device,
            plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b"",
        )


def site_of(one: tuple[NetworkRequest, Any], two: tuple[NetworkRequest, Any]) -> Site:
    """What two runs of the same step, for one image and for two, say of a network call.

    Raises:
        ValueError: when they differ in another way than by a doubled axis.
    """
    (first, answer), (second, other) = one, two
    return Site(learn(first.args, second.args), learn(first.kwargs, second.kwargs), learn(answer, other))


def group_key(site: Site | None, request: NetworkRequest, digests: Digests, uneven: bool) -> Any:
    """Requests with equal keys go into one call; an unknown kind of request is always alone."""
    rows = None if site is None else request_rows(site, request)
    if site is None or rows is None:
        return ("alone", id(request))
    return (
        request.site[0],
        id(request.module),
        None if uneven else rows,
        tree_key(site.args, request.args, digests),
        tuple(request.kwargs),
        tree_key(site.kwargs, request.kwargs, digests),
    )


def request_rows(site: Site, request: NetworkRequest) -> int | None:
    """Rows that a request asks for."""
    rows = rows_of(site.args, request.args)
    return rows_of(site.kwargs, request.kwargs) if rows is None else rows


def joined_request(
    site: Site, requests: Sequence[NetworkRequest], rows: Sequence[int], apart: bool = False
) -> tuple[tuple, dict]:
    """Arguments of the joined call; see :func:`joined`."""
    args = joined(site.args, [request.args for request in requests], rows, apart)
    kwargs = joined(site.kwargs, [request.kwargs for request in requests], rows, apart)
    return args, kwargs

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from addiffusion_env.backbones.calls.open_call import Inputs, NetworkRequest
from addiffusion_env.backbones.calls.recording import CONTAINERS, flattened
from addiffusion_env.backbones.fingerprint import LruCache, bytes_of

LIST = "list"
"""Kind of a list with one entry per row (images times branches)."""

CONSTANT = "constant"
"""Kind of a value that does not depend on the number of images."""


@dataclass(frozen=True)
class Layout:
    """The batch layout of a network's arguments or output.

    Attributes:
        kinds: the batch axis of each tensor (images times branches), :data:`LIST` or :data:`CONSTANT`.
        structure: the containers around them.
    """

    kinds: Sequence[int | str]
    structure: TreeSpec

    def parts(self, value: Any) -> Iterator[tuple[int | str, Any]]:
        """(kind, part) of a value of this layout."""
        return zip(self.kinds, self.structure.flatten_up_to(value), strict=True)

    def rows_of(self, value: Any) -> int | None:
        """The number of rows of a value; ``None`` if it has no batch axis."""
        for kind, part in self.parts(value):
            if isinstance(kind, int):
                return int((part.values[0] if isinstance(part, Lanes) else part).shape[kind])
            if kind == LIST:
                return len(part)
        return None


def learn(one: Any, two: Any) -> Layout:
    """The batch layout of a value, from its form for one image and for two.

    Raises:
        ValueError: when the two differ other than by a doubled axis or list.
    """
    return Layout(*tree_flatten(_kinds(one, two)))


def _kinds(one: Any, two: Any) -> Any:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        changed = [axis for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b]
        if not changed:
            return CONSTANT
        if len(changed) > 1 or two.shape[changed[0]] != 2 * one.shape[changed[0]]:
            raise ValueError(f"shapes {tuple(one.shape)} and {tuple(two.shape)}")
        return changed[0]
    (mine, structure), (other, another) = _opened(one), _opened(two)
    if structure.is_leaf() or another.is_leaf():
        if isinstance(one, (*CONTAINERS, Mapping)) and not isinstance(one, torch.Size):
            raise ValueError(f"entries of a {type(one).__name__}")  # torch cannot take it apart
        return CONSTANT
    if len(mine) != len(other):
        if len(other) != 2 * len(mine) or not isinstance(one, list | tuple):
            raise ValueError(f"{len(mine)} and {len(other)} entries")
        return LIST
    kinds = [_kinds(a, b) for a, b in zip(mine, other, strict=True)]
    plain = all(kind == CONSTANT for kind in kinds) and not any(isinstance(entry, Tensor) for entry in mine)
    return CONSTANT if plain else tree_unflatten(kinds, structure)


def _opened(value: Any) -> tuple[list[Any], TreeSpec]:
    """The entries of the outermost container."""
    return tree_flatten(value, is_leaf=lambda part: part is not value or not isinstance(part, CONTAINERS))


def is_time(value: Any) -> bool:
    """Whether a constant is a number in a tensor: a timestep or scale, which may become one value per row."""
    return isinstance(value, Tensor) and value.numel() == 1 and value.ndim <= 1


def part_key(kind: int | str, part: Any, constant: Callable[[Any], Any]) -> Any:
    """A key that is equal for parts of arguments that can be joined.

    Args:
        kind: see :class:`Layout`.
        part: the part.
        constant: returns a hashable key of a value that must be equal.
    """
    if isinstance(kind, int):
        shape = list(part.shape)
        shape[kind] = -1
        return (tuple(shape), part.dtype)
    if kind == LIST:
        # Entries may differ in length: the network itself pads them.
        return tuple(sorted({(e.ndim, e.dtype) if isinstance(e, Tensor) else constant(e) for e in part}, key=str))
    if is_time(part):
        # Integer and fractional timesteps are joined: both are converted to floating point.
        return ("number", part.ndim, part.dtype if part.is_floating_point() else torch.float32)
    return constant(part)


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


def spread(value: Any, lanes: int = 1) -> list[Any]:
    """The values of each of the first ``lanes`` images; containers are copied."""
    if isinstance(value, Lanes):
        return list(value.values[:lanes])
    if not isinstance(value, CONTAINERS):
        return [value] * lanes
    parts, structure = flattened(value)
    return [
        tree_unflatten([part.values[lane] if isinstance(part, Lanes) else part for part in parts], structure)
        for lane in range(lanes)
    ]


def _stacked(value: Any, lanes: int, axis: int) -> Tensor:
    """The images' values along an axis."""
    if not isinstance(value, Lanes):
        return value.unsqueeze(axis).expand(*value.shape[:axis], lanes, *value.shape[axis:])
    values = value.values
    return values.movedim(0, axis) if isinstance(values, Tensor) else torch.stack(list(values), dim=axis)


@dataclass(frozen=True)
class Site:
    """What was learned of one kind of network call: the layouts of its arguments and of its output."""

    inputs: Layout
    output: Layout

    def join(self, requests: Sequence[NetworkRequest], rows: Sequence[int], apart: bool = False) -> Inputs:
        """The arguments of one call for several requests.

        If all images have the same number of rows, rows are ordered by branch.

        Args:
            requests: requests with the same :func:`Networks.key`.
            rows: rows of each image.
            apart: expand timesteps to one floating-point value per row even if all are equal, so that a compiled
                network has only one form of call.
        """
        sizes = [request.lanes for request in requests]
        columns = zip(*(self.inputs.structure.flatten_up_to(request.inputs) for request in requests), strict=True)
        kinds = zip(self.inputs.kinds, columns, strict=True)
        parts = [_joined(kind, column, rows, sizes, apart) for kind, column in kinds]
        inputs: Inputs = tree_unflatten(parts, self.inputs.structure)
        return inputs

    def split(self, output: Any, rows: Sequence[int], sizes: Sequence[int]) -> list[Any]:
        """Undoes :meth:`join` for an output: one for each request, with tensors (images, ...) if it has several."""
        columns = [_split(kind, part, rows, sizes) for kind, part in self.output.parts(output)]
        return [tree_unflatten(parts, self.output.structure) for parts in zip(*columns, strict=True)]


def _joined(kind: int | str, parts: Sequence[Any], rows: Sequence[int], sizes: Sequence[int], apart: bool) -> Any:
    even = _even(rows)
    if isinstance(kind, int) and even:
        if len(parts) == 1 and isinstance(parts[0], Lanes):
            return parts[0].along(kind)
        after = kind + 1
        stacked = [_stacked(part, size, after) for part, size in zip(parts, sizes, strict=True)]
        return (torch.cat(stacked, dim=after) if len(stacked) > 1 else stacked[0]).flatten(kind, after)
    [first] = spread(parts[0])
    if kind == CONSTANT and not is_time(first):
        return first
    flat = [own for part, size in zip(parts, sizes, strict=True) for own in spread(part, size)]
    if isinstance(kind, int):
        return torch.cat(flat, dim=kind)
    if kind == LIST:
        if not even:
            return type(first)(entry for own in flat for entry in own)
        return type(first)(own[branch] for branch in range(rows[0]) for own in flat)
    if not apart and all(own is first for own in flat):
        return first
    numbers = torch.cat([own.reshape(1) for own in flat])
    if not apart and bool((numbers == numbers[0]).all()):
        return first
    if apart and not first.is_floating_point():
        numbers = numbers.float()
    if even:
        return numbers.repeat(rows[0])
    return numbers.repeat_interleave(torch.tensor(rows, device=numbers.device), output_size=sum(rows))


def _split(kind: int | str, part: Any, rows: Sequence[int], sizes: Sequence[int]) -> list[Any]:
    if kind == CONSTANT:
        return [part] * len(sizes)
    even, lanes = _even(rows), len(rows)
    own: Any
    if isinstance(kind, int):
        own = part.unflatten(kind, (rows[0], lanes)).movedim(kind + 1, 0) if even else part.split(list(rows), dim=kind)
    else:
        ends = itertools.accumulate(rows)
        own = [part[lane::lanes] if even else part[end - rows[lane] : end] for lane, end in enumerate(ends)]
    found = []
    for size, end in zip(sizes, itertools.accumulate(sizes), strict=True):
        several = own[end - size : end]
        if size == 1:
            found.append(several[0])
        elif kind == LIST:
            found.append([torch.stack(branch) for branch in zip(*several, strict=True)])
        else:
            found.append(several if isinstance(several, Tensor) else torch.stack(several))
    return found


def _even(rows: Sequence[int]) -> bool:
    return rows.count(rows[0]) == len(rows)


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

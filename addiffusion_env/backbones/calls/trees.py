"""Nested containers: the arguments and outputs of networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor


def entries(value: Any) -> list[Any] | None:
    """The entries of a container in order; ``None`` for a leaf."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    return None


def rebuilt(like: Any, parts: Sequence[Any]) -> Any:
    """A container of the type of ``like`` with other entries."""
    if isinstance(like, Mapping):
        pairs = dict(zip(like, parts, strict=True))
        kind: Any = type(like)
        if kind is dict:
            return pairs
        return kind(**pairs) if dataclasses.is_dataclass(like) else kind(pairs)
    if hasattr(like, "_fields"):
        return type(like)(*parts)
    return type(like)(parts)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a value, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in entries(value) or () for tensor in tensors_in(part)]


def with_tensors(value: Any, made: Callable[[Tensor], Any]) -> Any:
    """A value with each tensor replaced by a function of it."""
    if isinstance(value, Tensor):
        return made(value)
    parts = entries(value)
    return value if parts is None else rebuilt(value, [with_tensors(part, made) for part in parts])

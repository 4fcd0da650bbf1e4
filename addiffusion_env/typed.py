"""Settings are checked against the types that their dataclass declares, so that a wrong one is refused by name."""

from __future__ import annotations

import collections.abc
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

from addiffusion_env.errors import ConfigError


def check_types(what: str, settings: Any, see: str = "") -> None:
    """Refuses a field whose value is not of its declared type.

    Numbers of NumPy count as numbers, a whole number as a float, ``True`` as neither; NaN is refused; any sequence does
    for a list or tuple (OmegaConf has its own), a string for none.

    Args:
        what: the settings' name in front of the field's, with its dot, or empty: ``"refine."``.
        settings: a dataclass with type hints that can be resolved.
        see: where to read about the fields; empty for the dataclass's name.

    Raises:
        ConfigError: naming the field, its value and what it should be.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Size:
    ...     width: int = 1
    >>> check_types("size.", Size("wide"))
    Traceback (most recent call last):
    addiffusion_env.errors.ConfigError: size.width must be int, got 'wide'
      -> see Size
    """
    kind: Any = type(settings)
    for item in fields(settings):
        _check(
            f"{what}{item.name}", getattr(settings, item.name), _hints(kind)[item.name], see or f"see {kind.__name__}"
        )


def check_least(what: str, settings: Any, least: Mapping[str, float], see: str) -> None:
    """Refuses numbers of a dataclass that are below their least; ``None`` is no number and stays.

    Args:
        what: stands before the fields' names: ``"replay."``.
        settings: the dataclass.
        least: field -> its least.
        see: what to do.

    Raises:
        ConfigError: naming the field, its least and the value.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and value < bound:
            raise ConfigError(f"{what}{name} must be at least {bound}, got {value}", see)


def check_arguments(what: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuses keyword arguments whose values are not of the types that a function declares.

    Args:
        what: whose they are, for the error: ``"reward term 'nfe_price'"``.
        function: with type hints that can be resolved.
        given: names of its parameters and their values.

    Raises:
        ConfigError: naming the argument, its value and what it should be.
    """
    for name, value in given.items():
        _check(f"{name} of {what}", value, _hints(function).get(name, Any), f"see {function.__module__}")


def _check(name: str, value: Any, hint: Any, see: str) -> None:
    if not _fits(value, hint):
        wanted = " or ".join(_named(option) for option in _options(hint))
        raise ConfigError(f"{name} must be {wanted}, got {value!r:.100}", see)


@lru_cache(maxsize=64)
def _hints(declared: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(declared)
    except NameError:  # a name that only type checkers see, as among SB3's: the hints beside it are types already
        return {name: hint for name, hint in declared.__annotations__.items() if not isinstance(hint, str)}


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _named(hint: Any) -> str:
    if hint is type(None):
        return "null"
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, collections.abc.Sequence):
        return f"a list of {' or '.join(map(_named, _options(inside[0])))}"
    return getattr(origin or hint, "__name__", str(hint)).lower()


def _fits(value: Any, hint: Any) -> bool:
    if len(_options(hint)) > 1:
        return any(_fits(value, option) for option in _options(hint))
    origin, inside = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint is Any:
        return True
    if origin is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)
    if origin is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if origin in (tuple, list, collections.abc.Sequence):
        if not isinstance(value, collections.abc.Sequence) or isinstance(value, str | bytes):
            return False
        if origin is tuple and inside and inside[-1] is not Ellipsis:
            return len(value) == len(inside) and all(map(_fits, value, inside))
        return not inside or all(_fits(item, inside[0]) for item in value)
    if origin is collections.abc.Mapping:
        keys, values = inside or (Any, Any)
        return isinstance(value, collections.abc.Mapping) and all(
            _fits(key, keys) and _fits(item, values) for key, item in value.items()
        )
    return isinstance(value, origin)

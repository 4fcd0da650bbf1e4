"""Settings read from configuration, with checks of names, types and ranges."""

from __future__ import annotations

import collections.abc
import math
import numbers
import operator
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from addiffusion_env.errors import ConfigError, check_settings

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Ge:
    """Range of a field, as in ``Annotated[int, Ge(1)]``: at least ``bound``. ``None`` is not checked."""

    bound: float
    words: ClassVar[str] = "at least"
    holds: ClassVar[Any] = staticmethod(operator.ge)


class Gt(Ge):
    """Range of a field: above ``bound``."""

    words = "above"
    holds = staticmethod(operator.gt)


class Settings:
    """Base of dataclasses that are read from configuration.

    Types and ranges of fields are checked on construction, from their annotations; see :func:`check_types`.

    Attributes:
        section: name of the mapping that it is read from (``"tabular"``); empty for a whole configuration, from which
            the fields are selected and the other keys ignored.
        see: where the fields are documented, for errors.
        retired: removed field -> what to do instead, for errors.

    >>> @dataclass(frozen=True)
    ... class Recording(Settings):
    ...     section = "recording"
    ...     images: int = 256
    >>> Recording.of({"images": 8})
    Recording(images=8)
    >>> Recording.of({"image": 8})
    Traceback (most recent call last):
    addiffusion_env.errors.ConfigError: recording has no setting 'image'
      -> did you mean 'images'? known: images
    >>> Recording.of({"images": "many"})
    Traceback (most recent call last):
    addiffusion_env.errors.ConfigError: recording.images must be int, got 'many'
      -> see Recording
    """

    section: ClassVar[str] = ""
    see: ClassVar[str] = ""
    retired: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        check_types(self.section and f"{self.section}.", self, self.see)

    @classmethod
    def of(cls, given: Mapping[str, Any] | Self) -> Self:
        """Builds settings from configuration; settings of this class are returned unchanged.

        Raises:
            ConfigError: for an unknown key (suggests the nearest one, or what replaced it), a missing key, or a value
                of the wrong type or out of range.
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, collections.abc.Mapping):
            raise ConfigError(f"{cls.section} must be a mapping, got {given!r:.100}", cls.see or f"see {cls.__name__}")
        declared: Any = cls  # a dataclass
        known = {item.name: item for item in fields(declared)}
        if not cls.section:
            given = {name: given[name] for name in known}
        for name in given:
            if name in cls.retired:
                raise ConfigError(f"{cls.section}.{name} has been removed", cls.retired[name])
        check_settings(f"{cls.section} has", given, known)
        for name, item in known.items():
            if name not in given and item.default is MISSING and item.default_factory is MISSING:
                raise ConfigError(f"{cls.section} needs {cls.section}.{name}", cls.see or f"see {cls.__name__}")
        return cls(**given)


def check_types(what: str, settings: Any, see: str = "") -> None:
    """Checks that the fields of a dataclass have their declared types and lie in their annotated ranges.

    NumPy's numbers are accepted as numbers, integers as floats, ``True`` as neither; NaN is refused. Any sequence is
    accepted for a list or tuple (OmegaConf has its own), except strings.

    Args:
        what: prefix of the field's name in errors, with a dot, or empty: ``"refine."``.
        settings: a dataclass with type hints that can be resolved.
        see: where the fields are documented; empty for the dataclass's name.

    Raises:
        ConfigError: for an invalid value; names the field, the value and what is expected.

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
    see = see or f"see {kind.__name__}"
    for item in fields(settings):
        name, value, hint = f"{what}{item.name}", getattr(settings, item.name), _hints(kind)[item.name]
        ranges = getattr(hint, "__metadata__", ())
        _check(name, value, hint.__origin__ if ranges else hint, see)
        for allowed in ranges:
            if isinstance(value, numbers.Real) and not allowed.holds(value, allowed.bound):
                raise ConfigError(f"{name} must be {allowed.words} {allowed.bound:g}, got {value}", see)


def check_arguments(what: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Checks that keyword arguments have the types that a function declares.

    Args:
        what: the owner of the arguments, for the error: ``"reward term 'nfe_cost'"``.
        function: a function or class with type hints that can be resolved.
        given: argument names and values.

    Raises:
        ConfigError: for an invalid value; names the argument, the value and what is expected.
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
        return typing.get_type_hints(declared, include_extras=True)
    except NameError:  # imported for type checkers only, as in SB3: keep the other hints, which are types already
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

"""Settings read from configuration: checks of names, types and ranges, and the names of earlier versions.

Earlier names are understood for one release, with a note; records and policies that were kept under them are read.
"""

from __future__ import annotations

import collections.abc
import math
import numbers
import operator
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

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


def lane_count(count: Any) -> int:
    """A number of lanes.

    Raises:
        ConfigError: unless it is a whole number, at least 1.
    """
    whole = isinstance(count, numbers.Integral) and not isinstance(count, bool)
    if not whole or count < 1:
        wanted = "at least 1" if whole else "a whole number"
        raise ConfigError(f"num_envs must be {wanted}, got {count!r:.100}", "use 8")
    return int(count)


def whole_seed(seed: Any) -> int:
    """A seed of a lane.

    Raises:
        ConfigError: unless it is a whole number, 0 or more.
    """
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0:
        raise ConfigError(f"a seed must be a whole number, 0 or more, got {seed!r:.100}", "use 0")
    return int(seed)


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
    name: str = getattr(origin or hint, "__name__", str(hint))
    return name if getattr(origin or hint, "__module__", "").startswith("addiffusion_env") else name.lower()


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


# ------------------------------------------------------------------------------------------------ earlier names

OLD_NAMES: dict[str, dict[str, str]] = {
    "environment setting": {"price": "cost_per_nfe", "landing_steps": "early_exit_steps"},
    "refine setting": {"liking": "utility"},
    "refine preset": {"retry": "resample_short", "restart": "resample", "again": "resample_keep_best"},
    "utility setting": {"belief": "calibrator"},
    "observation key": {"price": "cost_per_nfe", "tries": "attempts", "belief": "correctness"},
    "reward term": {"nfe_price": "nfe_cost"},
    "render mode": {"film": "filmstrip"},
    "reset option": {"price": "cost_per_nfe"},
    "sampler": {"threshold_retry": "threshold_resample"},
    "evaluation setting": {
        "methods": "samplers",
        "prices": "costs_per_nfe",
        "price": "cost_per_nfe",
        "keep_pictures": "keep_images",
        "films": "filmstrips",
    },
    "column": {"method": "sampler", "demands": "constraints", "picture": "image"},
    "manifest entry": {"methods": "samplers", "price": "cost_per_nfe"},
    "policy file entry": {"highest_price": "highest_cost_per_nfe", "default_price": "default_cost_per_nfe"},
}
"""Kind of name -> old name -> the present one."""

Given = TypeVar("Given")


def present(kind: str, given: Given, note: bool = True) -> Given:
    """A name, or the keys of a mapping, under their present names; anything else is given back as it is.

    Args:
        kind: a key of :data:`OLD_NAMES`.
        given: what a user wrote, or an earlier version kept.
        note: whether to say so on the standard error, once a process for each name.

    >>> present("refine preset", "again", note=False), present("refine preset", "off")
    ('resample_keep_best', 'off')
    >>> present("environment setting", {"price": 0.01, "steps": 6}, note=False)
    {'cost_per_nfe': 0.01, 'steps': 6}
    """
    known = OLD_NAMES[kind]
    value: Any = given
    if isinstance(value, str) and value in known:
        value = _renamed(kind, value, note)
    elif isinstance(value, Mapping) and not known.keys().isdisjoint(value):
        value = {_renamed(kind, key, note) if key in known else key: item for key, item in value.items()}
    return value  # type: ignore[no-any-return]


def present_settings(given: Mapping[str, Any], note: bool = True) -> dict[str, Any]:
    """An environment's settings under their present names, those inside refinement, reward and observation too.

    >>> present_settings({"refine": {"preset": "again", "liking": {"belief": "emoji"}}, "steps": 6}, note=False)
    {'refine': {'preset': 'resample_keep_best', 'utility': {'calibrator': 'emoji'}}, 'steps': 6}
    """
    found = dict(present("environment setting", given, note))
    inside = {
        "refine": present_refine,
        "reward": present_reward,
        "observation_keys": present_keys,
        "render_mode": lambda mode, note: present("render mode", mode, note),
    }
    return {key: inside[key](value, note) if key in inside else value for key, value in found.items()}


def present_refine(given: Any, note: bool = True) -> Any:
    """A refinement, as a preset's name or a mapping, under present names."""
    if not isinstance(given, Mapping):
        return present("refine preset", given, note)
    found = dict(present("refine setting", given, note))
    inside = {"preset": "refine preset", "utility": "utility setting"}
    return {key: present(inside[key], value, note) if key in inside else value for key, value in found.items()}


def present_reward(given: Any, note: bool = True) -> Any:
    """A reward, as a preset's name or a mapping of terms, under present names."""
    if not isinstance(given, Mapping):
        return given
    terms = present("reward term", given, note)
    return {name: present("utility setting", term, note) for name, term in terms.items()}


def present_keys(given: Any, note: bool = True) -> Any:
    """A list of observation keys under present names; a preset's name is given back as it is."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        return given
    return [present("observation key", key, note) for key in given]


def _renamed(kind: str, old: str, note: bool) -> str:
    if note:
        note_renamed(f"{kind} {old!r}", repr(OLD_NAMES[kind][old]))
    return OLD_NAMES[kind][old]


@cache
def note_renamed(what: str, new: str) -> None:
    """Prints, once per process, that something is understood under its former name."""
    print(f"note: {what} is called {new} now; a later version will refuse the old name", file=sys.stderr)

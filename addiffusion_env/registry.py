"""Registries of names that are resolved to objects on first use, so that listing them imports nothing heavy."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any

from addiffusion_env.errors import ConfigError, UnknownNameError, unknown


class Registry(Mapping[str, str]):
    """Maps names to ``"module:attribute"`` targets, which are imported when they are loaded.

    Args:
        kind: kind of the entries, for error messages: ``"backbone"``, ``"reward term"``.
        entries: name -> ``"module:attribute"``.
        more: a module that registers further names when it is imported; errors mention it until then.

    >>> loaders = Registry("loader", {"json": "json:loads"})
    >>> loaders.load("json")("[1]")
    [1]
    >>> loaders.load("jsn")
    Traceback (most recent call last):
    addiffusion_env.errors.UnknownNameError: unknown loader 'jsn'
      -> did you mean 'json'? known: json
    """

    def __init__(self, kind: str, entries: Mapping[str, str] | None = None, more: str = "") -> None:
        self.kind, self.more = kind, more
        self._entries: dict[str, str] = {}
        for name, target in (entries or {}).items():
            self.add(name, target)

    def __getitem__(self, name: str) -> str:
        if name not in self._entries:
            raise self.unknown(name)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def unknown(self, name: str, others: Iterable[str] = ()) -> UnknownNameError:
        """The error for an unknown name, with the nearest known one and the module that registers more.

        Args:
            name: a name that is not registered.
            others: further known names.
        """
        error = unknown(self.kind, name, (*others, *self._entries))
        if self.more and self.more not in sys.modules:
            remedy = f"{error.remedy}; `import {self.more}` or plugins=[{self.more}] adds more names"
            return UnknownNameError(error.cause, remedy)
        return error

    def add(self, name: str, target: str) -> None:
        """Registers ``target`` (``"module:attribute"``) under ``name``; again, if its module is reloaded.

        Raises:
            ConfigError: if the name is registered for another target or the target is not of that form.
        """
        if self._entries.get(name, target) != target:
            raise ConfigError(
                f"{self.kind} {name!r} is already registered as {self._entries[name]}", "pick another name"
            )
        if target.count(":") != 1:
            raise ConfigError(f"{self.kind} {name!r}: target {target!r} is not 'module:attribute'", "give both parts")
        self._entries[name] = target

    def load(self, name: str) -> Any:
        """Imports and returns the object registered as ``name``.

        Raises:
            UnknownNameError: for a name that is not registered; suggests the nearest known one.
        """
        return load_object(self[name])


def load_object(target: str) -> Any:
    """Imports and returns the object ``"module:attribute"``; the attribute may be dotted.

    >>> load_object("json:JSONDecoder.decode").__name__
    'decode'
    """
    module, attribute = target.split(":")
    return attrgetter(attribute)(importlib.import_module(module))

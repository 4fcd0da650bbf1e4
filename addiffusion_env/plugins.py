"""Plugins: modules that register further components with ``REGISTRY.add``, imported before names are resolved."""

from __future__ import annotations

import json
import os
import pkgutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from addiffusion_env.errors import ConfigError, closest

_loaded: dict[str, None] = {}


def load_plugins(names: Sequence[str], key: str = "plugins") -> None:
    """Imports modules, also from the working directory; modules that are already imported are not reloaded.

    Args:
        names: names of modules, as for ``import``: ``["my_terms"]``.
        key: the configuration key or file that names them, for error messages.

    Raises:
        ConfigError: for a module that is not found (suggests the nearest one), or that raises on import.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{key} must be a list of modules, got {names!r:.100}", f"write '{key}=[my_module]'")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # last: a file there must not hide an installed package
    for name in names:
        try:
            import_module(name)
        except Exception as error:  # the module's code may raise anything
            raise _not_imported(name, key, error) from error
        _loaded[name] = None


def loaded_plugins() -> tuple[str, ...]:
    """The modules that :func:`load_plugins` has imported in this process, in order: worker processes need them too."""
    return tuple(_loaded)


def require_plugins(names: Sequence[str], where: Path | str) -> None:
    """Checks that the plugins with which a file was written are imported. A file never causes an import by itself.

    Raises:
        ConfigError: if some are not; names the file and the modules.
    """
    missing = [name for name in names if name not in sys.modules]
    if missing:
        raise ConfigError(
            f"{where} was written with plugins that are not imported: {', '.join(missing)}",
            f"if you have them and trust them, pass plugins=[{', '.join(missing)}]; importing a module runs its code",
        )


def recorded_plugins(run: Path | str) -> tuple[str, ...]:
    """The plugins of a training run, from the ``config.json`` in its folder; none without that file."""
    try:
        names = json.loads((Path(run) / "config.json").read_text(encoding="utf-8"))["plugins"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def with_plugins(config: Mapping[str, Any], runs: Iterable[Path | str | None] = ()) -> dict[str, Any]:
    """Imports the plugins of a script's configuration and those of training runs.

    Args:
        config: a configuration with the key ``plugins``.
        runs: folders of training runs; ``None`` and other folders have no plugins.

    Returns:
        The configuration with all plugins under ``plugins``.

    Raises:
        ConfigError: see :func:`load_plugins`.
    """
    load_plugins(config["plugins"])
    names = list(config["plugins"])
    for run in (run for run in runs if run is not None):
        recorded = recorded_plugins(run)
        load_plugins(recorded, f"plugins of the run {run}")
        names += recorded
    return {**config, "plugins": list(dict.fromkeys(names))}


def _not_imported(name: str, key: str, error: Exception) -> ConfigError:
    cause = f"{key}: {name!r} cannot be imported: {type(error).__name__}: {error}"
    if not (isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}.")):
        return ConfigError(cause, "correct the module, or install what it imports")
    near = closest(name, (module.name for module in pkgutil.iter_modules()))
    hint = f"did you mean {near!r}? " if near else ""
    return ConfigError(cause, f"{hint}name a module that is installed or in the working directory {os.getcwd()}")

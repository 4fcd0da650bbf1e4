"""The calibrator of a policy: a file in the policy's folder, so that it travels with the policy.

A run fits its calibrator to its own recorded attempts (:mod:`agents.recording`). The environment of its policy names it
by a path; in the policy's folder that path is :data:`CALIBRATOR_FILE`, which is read from wherever the folder is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from addiffusion_env.errors import ConfigError
from addiffusion_env.scorers.utility import Calibrator

CALIBRATOR_FILE = "calibrator.safetensors"
"""Name of a calibrator in a policy's folder, and in its configuration."""

KEY, SUFFIX = "calibrator", ".safetensors"


def named_calibrators(environment: Mapping[str, Any]) -> tuple[str, ...]:
    """The calibrators that an environment's settings name (of its refinement and of reward terms), each once.

    >>> named_calibrators({"refine": {"utility": {"calibrator": "emoji"}}, "steps": 6})
    ('emoji',)
    """
    found: dict[str, None] = {}
    _replaced(environment, lambda name: found.setdefault(name) or name)
    return tuple(found)


def calibrator_path(environment: Mapping[str, Any]) -> Path | None:
    """The calibrator file that an environment's settings name; ``None`` without one, or for a shipped calibrator.

    Raises:
        ConfigError: for more than one file.
    """
    files = [name for name in named_calibrators(environment) if name.endswith(SUFFIX)]
    if len(files) > 1:
        raise ConfigError(
            f"a policy has one calibrator, and its environment names {' and '.join(files)}",
            "give refine.utility.calibrator and reward.terminal_bonus.calibrator the same file",
        )
    return Path(files[0]) if files else None


def copied(environment: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Copies the calibrator file of an environment into a policy's folder; returns settings that name the copy.

    Calibrators that ship with the package are named, not copied.

    Raises:
        WeightsError: when it cannot be read.
        ConfigError: for more than one file.
    """
    name = calibrator_path(environment)
    if name is not None:
        calibrator = Calibrator.load(name)  # also refuses a damaged file
        if name.resolve() != (folder / CALIBRATOR_FILE).resolve():
            calibrator.save(folder / CALIBRATOR_FILE)
    return portable(environment)


def portable(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with :data:`CALIBRATOR_FILE` in place of the path of a calibrator's file."""
    return _replaced(environment, lambda name: CALIBRATOR_FILE if name.endswith(SUFFIX) else name)


def located(environment: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The reverse: settings that name the calibrator in ``folder`` by its path."""
    return _replaced(environment, lambda name: str(folder / CALIBRATOR_FILE) if name == CALIBRATOR_FILE else name)


def _replaced(settings: Any, change: Callable[[str], str]) -> Any:
    """Nested settings with the value of each key ``calibrator`` changed."""
    if not isinstance(settings, Mapping):
        return settings
    return {
        key: change(value) if key == KEY and isinstance(value, str) else _replaced(value, change)
        for key, value in settings.items()
    }

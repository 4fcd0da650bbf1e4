"""How many lanes: a number, or as many as the device holds."""

from __future__ import annotations

from addiffusion_env.errors import ConfigError

AUTO_LANES = 16
"""Lanes that ``lanes=auto`` begins with."""


def lanes_of(lanes: int | str, name: str = "lanes") -> tuple[int, bool]:
    """Reads a number of lanes from configuration.

    Args:
        lanes: a number, or ``"auto"``: :data:`AUTO_LANES`, in smaller calls once the device's memory runs out.
        name: of the key, for the error.

    Returns:
        The number of lanes, and whether calls are halved when memory runs out (:attr:`.engine.Engine.halve`).

    Raises:
        ConfigError: for anything else, or less than 1.

    >>> lanes_of(8), lanes_of("auto")
    ((8, False), (16, True))
    """
    if lanes == "auto":
        return AUTO_LANES, True
    if isinstance(lanes, bool) or not isinstance(lanes, int) or lanes < 1:
        raise ConfigError(f"{name} must be at least 1, or auto, got {lanes!r}", "use 8, or auto")
    return lanes, False

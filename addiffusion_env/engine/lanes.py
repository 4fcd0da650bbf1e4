"""The number of lanes: given, or limited by the device's memory."""

from __future__ import annotations

from addiffusion_env.errors import ConfigError

AUTO_LANES = 16
"""Initial number of lanes with ``lanes=auto``."""


def lanes_of(lanes: int | str, name: str = "lanes") -> tuple[int, bool]:
    """Parses a number of lanes from the configuration.

    Args:
        lanes: a number, or ``"auto"``: :data:`AUTO_LANES`, with smaller batches once the device's memory runs out.
        name: name of the key, for the error.

    Returns:
        The number of lanes, and whether batches are halved when memory runs out (:attr:`.engine.Engine.halve`).

    Raises:
        ConfigError: for any other value, or a number below 1.

    >>> lanes_of(8), lanes_of("auto")
    ((8, False), (16, True))
    """
    if lanes == "auto":
        return AUTO_LANES, True
    if isinstance(lanes, bool) or not isinstance(lanes, int) or lanes < 1:
        raise ConfigError(f"{name} must be at least 1, or auto, got {lanes!r}", "use 8, or auto")
    return lanes, False

"""Files that can run code when they are loaded: loaded only where somebody says that they may be."""

from __future__ import annotations

from pathlib import Path

from addiffusion_env.errors import ConfigError


def require_trust(path: Path | str, trust: bool) -> None:
    """Refuses a file with pickled Python objects unless its origin is vouched for.

    Args:
        path: the file.
        trust: ``True`` where the caller vouches for it.

    Raises:
        ConfigError: otherwise, with the reason.
    """
    if trust is not True:
        raise ConfigError(
            f"{path} holds pickled Python objects: loading it runs whatever code its author put there",
            "pass trust=True if you made it yourself or trust who did",
        )

"""Check before loading files that can run code."""

from __future__ import annotations

from pathlib import Path

from addiffusion_env.errors import UntrustedFileError


def require_trust(path: Path | str, trust: bool) -> None:
    """Refuses to open a file that can run code unless the caller has declared it trusted.

    Policies (safetensors and JSON) and checkpoints (tensors, numbers, strings) run no code and need no trust. A zip of
    Stable-Baselines3 does: its ``data`` holds pickled Python objects, and unpickling can run any code.

    Args:
        path: the file.
        trust: value passed by the user; only ``True`` itself counts.

    Raises:
        UntrustedFileError: unless ``trust`` is ``True``, with the reason.
    """
    if trust is not True:
        raise UntrustedFileError(
            f"{path} is a Stable-Baselines3 zip: loading it unpickles Python objects, which can run any code",
            "pass trust=True if you made it yourself or know who did; policies saved by train_sb3.py need no trust",
        )

"""The one gate before anything that can run code from a file."""

from __future__ import annotations

from pathlib import Path

from addiffusion_env.errors import UntrustedFileError


def require_trust(path: Path | str, trust: bool) -> None:
    """Lets a file that can run code be opened only when its reader has said that it is trusted.

    Policies (safetensors and JSON) and checkpoints (tensors, numbers, strings) run no code and need no trust. A zip of
    Stable-Baselines3 does: its ``data`` holds pickled Python objects, and unpickling runs whatever they say.

    Args:
        path: the file.
        trust: what the caller was told; only ``True`` itself counts.

    Raises:
        UntrustedFileError: unless ``trust`` is ``True``, with the reason.
    """
    if trust is not True:
        raise UntrustedFileError(
            f"{path} is a Stable-Baselines3 zip: loading it unpickles Python objects, which can run any code",
            "pass trust=True if you made it yourself or know who did; policies saved by train_sb3.py need no trust",
        )

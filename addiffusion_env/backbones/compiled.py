"""Compiled denoisers: one graph for each of a few batch sizes, since the number of active lanes varies.

``torch.compile`` and CUDA graphs are specialised to one batch size. Lanes that end, refine or skip guidance change the
size at every step, so batches are padded to the next of a few sizes (buckets) by repeating their last row, and the
added rows are dropped. A row's result does not depend on the others.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from addiffusion_env.errors import ConfigError, unknown

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Numbers of rows of a compiled network call (two per guided evaluation); no more sizes than torch compiles before it
falls back to eager mode (``torch._dynamo.config.recompile_limit``)."""


def buckets_for(compile: bool | str, sizes: Sequence[int] | None) -> tuple[int, ...]:
    """The batch sizes of network calls: those given, else :data:`BUCKETS` when compiled, else none.

    Raises:
        ConfigError: unless they are positive and strictly increasing.
    """
    if sizes is None:
        return BUCKETS if compile else ()
    if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
        cause = f"batch_buckets must be increasing numbers of rows, got {list(sizes)}"
        raise ConfigError(cause, "for example [8, 16, 32]")
    return tuple(sizes)


def bucket_of(rows: int, buckets: Sequence[int]) -> int:
    """The padded size of ``rows`` rows: the next bucket, or beyond the largest bucket a multiple of it.

    >>> [bucket_of(rows, (4, 16)) for rows in (1, 4, 5, 17, 40)], bucket_of(7, ())
    ([4, 4, 16, 32, 48], 7)
    """
    if not buckets:
        return rows
    largest = buckets[-1]
    return next((size for size in buckets if size >= rows), -(-rows // largest) * largest)


def check_mode(mode: str) -> None:
    """Refuses a mode that ``torch.compile`` does not know.

    Raises:
        UnknownNameError: with the nearest one.
    """
    from torch._inductor import list_mode_options

    if mode not in (known := list_mode_options()):
        raise unknown("mode of compile", mode, known)


def compiled(denoiser: Any, mode: bool | str, device: torch.device) -> Any:
    """Applies ``torch.compile`` to a denoiser; ``None``, with a warning, on a machine without a compiler.

    Args:
        denoiser: the network.
        mode: one of torch's modes (``"reduce-overhead"`` records CUDA graphs), or ``True`` for its default.
        device: where it runs.
    """
    lacks = compiler_lacks(device)
    if lacks:
        warnings.warn(
            f"compile={mode} was requested and {device.type} has {lacks}\n  -> the denoiser runs uncompiled, with the "
            "same images; install it, or set backbone_options.compile=false",
            UserWarning,
            stacklevel=2,
        )
        return None
    return torch.compile(denoiser, mode=None if mode is True else str(mode), dynamic=False)


def compiler_lacks(device: torch.device) -> str:
    """What ``torch.compile`` lacks on this machine, in a few words; empty if nothing is missing."""
    if device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "no triton"
    names = [os.environ.get("CXX", "g++"), "clang++"]
    return "" if any(shutil.which(name) for name in names) else "no C++ compiler"

"""Devices and precisions, and loading without libraries' messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from addiffusion_env.errors import ConfigError, nearest

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def instruction_set() -> str:
    """What torch's CPU kernels are written in here: ``avx512``, ``avx2``, or ``default`` for the plainest.

    Each sums in another order, so last digits differ between them, and what multiplies those differs more.
    ``ATEN_CPU_CAPABILITY`` (with ``ONEDNN_MAX_CPU_ISA``) chooses an older one.
    """
    return torch.backends.cpu.get_cpu_capability().lower()


def resolve_device(name: str) -> torch.device:
    """``"auto"`` is CUDA, then MPS, then the CPU; anything else is torch's own name.

    Raises:
        ConfigError: for a name that torch does not know or a device that is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}", "use auto, cpu, cuda, cuda:1 or mps") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {name!r} was asked for, but torch sees no CUDA device", "use device=auto or device=cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            f"device {name!r} was asked for, but torch has no MPS device here", "use device=auto or device=cpu"
        )
    return device


def resolve_dtype(name: str, device: torch.device, auto: str = "float16") -> torch.dtype:
    """``"auto"`` is the precision called ``auto`` on CUDA and float32 elsewhere.

    Raises:
        ConfigError: for another name, or for float16 on the CPU, where most kernels lack it.
    """
    if name == "auto":
        return DTYPES[auto] if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}", nearest(name, ["auto", *DTYPES]))
    if name == "float16" and device.type == "cpu":
        raise ConfigError("float16 was asked for on the CPU", "use float32 or bfloat16")
    return DTYPES[name]


def dtype_keyword() -> str:
    """What this version of diffusers calls the precision that ``from_pretrained`` loads in."""
    from diffusers import __version__
    from packaging.version import Version

    return "dtype" if Version(__version__) >= Version("0.42") else "torch_dtype"


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Within the context, transformers draws no bars and diffusers only reports errors; both are put back after."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    level = diffusers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()

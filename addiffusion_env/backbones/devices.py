"""Devices, precisions, and quiet loading."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from addiffusion_env.errors import ConfigError, nearest

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def instruction_set() -> str:
    """The instruction set of torch's CPU kernels on this machine: ``avx512``, ``avx2``, or ``default``.

    Each sums in a different order, so results differ in the last digits, and iterated results by more.
    ``ATEN_CPU_CAPABILITY`` (with ``ONEDNN_MAX_CPU_ISA``) selects an older one.
    """
    return torch.backends.cpu.get_cpu_capability().lower()


def resolve_device(name: str) -> torch.device:
    """Resolves a device name: ``"auto"`` is CUDA, then MPS, then the CPU; other names are torch's.

    Raises:
        ConfigError: for an unknown name or an unavailable device.
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
            f"device {name!r} was requested, but torch sees no CUDA device", "use device=auto or device=cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            f"device {name!r} was requested, but torch has no MPS device here", "use device=auto or device=cpu"
        )
    return device


def resolve_dtype(name: str, device: torch.device, auto: str = "float16") -> torch.dtype:
    """Resolves a dtype name: ``"auto"`` is the dtype named by ``auto`` on CUDA and float32 elsewhere.

    Raises:
        ConfigError: for an unknown name, or for float16 on the CPU, where most kernels lack it.
    """
    if name == "auto":
        return DTYPES[auto] if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}", nearest(name, ["auto", *DTYPES]))
    if name == "float16" and device.type == "cpu":
        raise ConfigError("float16 was requested on the CPU", "use float32 or bfloat16")
    return DTYPES[name]


@contextmanager
def without_triton() -> Iterator[None]:
    """Context manager of imports that load ``torch._dynamo``: on a machine without a GPU, without triton (75 MB).

    Triton compiles for GPUs only; torch then takes it for not installed.
    """
    if torch.cuda.is_available() or torch.xpu.is_available() or "triton" in sys.modules:
        yield
        return
    sys.modules["triton"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["triton"]


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Context manager: transformers shows no progress bars and diffusers logs errors only; both are restored after."""
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

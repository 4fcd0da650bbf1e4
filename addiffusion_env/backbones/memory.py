"""Moves a loaded pipeline to its device, after checking that it fits into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from addiffusion_env.errors import ConfigError, WeightsError
from addiffusion_env.files import WORKS_OFFLINE


def place(pipe: Any, name: str, device: torch.device, offload: str) -> None:
    """Moves a pipeline to a device, or sets up offloading to it.

    Raises:
        WeightsError: when it does not fit the GPU.
        ConfigError: for offloading without a GPU.
    """
    if offload != "none" and device.type == "cpu":
        raise ConfigError(f"offload={offload} was requested on the CPU", "offloading frees a GPU; use offload=none")
    sizes = {key: size_of(part) for key, part in pipe.components.items() if isinstance(part, nn.Module)}
    needed = {"none": sum(sizes.values()), "model": max(sizes.values(), default=0), "sequential": 0}[offload]
    if device.type == "cuda":
        check_memory(name, needed, torch.cuda.mem_get_info(device)[0], device, offload, pipe.dtype)
    try:
        if offload == "model":
            pipe.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            pipe.enable_sequential_cpu_offload(device=device)
        else:
            pipe.to(device)
    except torch.cuda.OutOfMemoryError as error:
        raise too_large(name, needed, 0, device, offload, pipe.dtype) from error


def size_of(module: nn.Module) -> int:
    """Bytes of a module's parameters."""
    return sum(value.numel() * value.element_size() for value in module.parameters())


def check_memory(
    name: str, needed: int, free: int, device: torch.device, offload: str, dtype: torch.dtype = torch.float32
) -> None:
    """Checks that weights of ``needed`` bytes fit into ``free`` bytes.

    Raises:
        WeightsError: with both numbers, and settings that would fit.
    """
    if needed > free:
        raise too_large(name, needed, free, device, offload, dtype)


def too_large(
    name: str, needed: int, free: int, device: torch.device, offload: str, dtype: torch.dtype
) -> WeightsError:
    """The error for weights of ``dtype`` that do not fit a GPU."""
    more = {"none": "offload=model or offload=sequential", "model": "offload=sequential"}.get(
        offload, "a smaller model"
    )
    return WeightsError(
        f"{name} needs {needed / 2**30:.1f} GiB for its weights, {device} has {free / 2**30:.1f} GiB free",
        f"use {more}, {'dtype=auto (half precision), ' * (dtype == torch.float32)}or free the GPU; {WORKS_OFFLINE}",
    )


@contextmanager
def alone(pipe: Any) -> Iterator[None]:
    """Context manager for ``offload=model``: moves all other components off the GPU, and on exit every component.

    accelerate's hooks load a component when it is called and offload only its predecessor in the pipeline's order: text
    encoders and autoencoder would stay on the GPU with the denoiser, which is called again after them.
    """
    send_away(pipe)
    try:
        yield
    finally:
        send_away(pipe)


def send_away(pipe: Any, but: nn.Module | None = None) -> None:
    """Moves all components with offloading hooks to host memory, except ``but``."""
    for hook in getattr(pipe, "_all_hooks", ()):
        if but is None or hook.model is not but:
            hook.offload()


def is_offloaded(pipe: Any) -> bool:
    """Whether accelerate's or diffusers' hooks move the pipeline's parts."""
    return any(moved_by_hook(part) for part in vars(pipe).values() if isinstance(part, nn.Module))


def moved_by_hook(part: nn.Module) -> bool:
    """Whether a component is moved between devices as it is called."""
    # Pipelines that enter a cache context leave an empty hook registry behind.
    registry = getattr(part, "_diffusers_hook", None)
    return getattr(part, "_hf_hook", None) is not None or bool(getattr(registry, "hooks", None))

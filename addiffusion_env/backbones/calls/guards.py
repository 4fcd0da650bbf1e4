"""Context managers around a pipeline's own code: random state, error translation, autoencoder precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from addiffusion_env.errors import AdDiffusionError, CapabilityError, ConfigError
from addiffusion_env.files import in_a_line


@contextmanager
def forked_rng(state: Tensor | None) -> Iterator[None]:
    """Context manager that sets the state of torch's CPU generator and restores it; no-op for ``None``."""
    with torch.random.fork_rng(devices=[], enabled=state is not None):
        if state is not None:
            torch.set_rng_state(state)
        yield


@contextmanager
def pipeline_errors(pipe: Any, what: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Context manager that translates exceptions of the pipeline into errors of this package.

    Raises:
        ConfigError: when ``strength`` leaves no step, or the pipeline refuses a value.
        CapabilityError: for any other exception except out of memory; ``clip_skip`` fails with transformers 5.
    """
    try:
        yield
    except (AdDiffusionError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        strength, steps = arguments.get("strength"), arguments.get("num_inference_steps", 0)
        if isinstance(strength, int | float) and int(strength * steps) < 1:
            raise ConfigError(
                f"strength={strength:g} of {steps} steps leaves no step for a {type(pipe).__name__}",
                f"use strength={1 / max(steps, 1):.2g} or more, or more steps",
            ) from error
        if arguments.get("clip_skip") is not None and isinstance(error, AttributeError):
            raise CapabilityError(
                f"clip_skip does not work with the installed diffusers and transformers: {in_a_line(error)[:200]}",
                "leave it out, or install transformers<5",
            ) from error
        if isinstance(error, ValueError):
            raise ConfigError(
                f"a {type(pipe).__name__} refuses its arguments: {in_a_line(error)[:300]}",
                "change pipeline_kwargs (prompt_embeds=, image= ...), or the options that set them",
            ) from error
        raise CapabilityError(
            f"{what} of {type(pipe).__name__} failed: {in_a_line(error)[:200]}",
            "give what it needs as arguments (pipeline_kwargs), for example height=, width=, image=, "
            "ip_adapter_image=, prompt_embeds=; "
            "or use the pipeline class that its network was made for",
        ) from error


@contextmanager
def kept_precision(pipe: Any) -> Iterator[dict[Any, torch.dtype]]:
    """Context manager that yields the precision of each autoencoder and restores it, also after an exception."""
    modules: list[Any] = [part for part in vars(pipe).values() if isinstance(part, torch.nn.Module)]
    precisions = {part: precision_of(part) for part in modules if hasattr(part, "decode")}
    try:
        yield precisions
    finally:
        for part, dtype in precisions.items():
            if precision_of(part) != dtype:
                part.to(dtype=dtype)


def precision_of(module: torch.nn.Module) -> torch.dtype:
    """Precision of a network's first floating-point weight; diffusers' own ``dtype`` visits every layer."""
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), torch.float32)

"""What surrounds a pipeline's own code: torch's state, random state, attention processors, errors, precision.

Grad mode, inference mode, autocast and the stack of torch-function modes (``torch.device`` as a context manager) belong
to the thread, and all open calls share one thread. Each call's state is therefore restored when the call is resumed,
and the caller's state when the call is suspended (:class:`TorchState`).
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from addiffusion_env.errors import AdDiffusionError, CapabilityError, ConfigError
from addiffusion_env.files import in_a_line

WHERE = (
    "arguments of every image are pipeline_kwargs= of an environment, or of "
    "AdaptivePipeline(PipelineBackbone.from_pipeline(pipe, pipeline_kwargs={'image': image}))"
)
"""Where the arguments of a pipeline's call are given that it cannot be measured without."""

AUTOCAST_DEVICES = ("cpu", "cuda")


def autocast_state() -> tuple[Any, ...]:
    """(whether autocast is on, its precision) of each kind of device; networks' outputs depend on it."""
    return tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in AUTOCAST_DEVICES)


def _flags() -> tuple[Any, ...]:
    return (torch.is_grad_enabled(), torch.is_autocast_cache_enabled(), *autocast_state())


def _set_flags(flags: tuple[Any, ...]) -> None:
    torch.set_grad_enabled(flags[0])
    torch.set_autocast_cache_enabled(flags[1])
    for kind, (enabled, dtype) in zip(AUTOCAST_DEVICES, flags[2:], strict=True):
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)


class TorchState:
    """The torch state of one open call.

    Call :meth:`enter` before the open call is resumed, and :meth:`leave` once it is suspended again or has ended.
    """

    def __init__(self) -> None:
        self._own: tuple[Any, ...] | None = None
        self._own_modes: list[Any] = []
        self._inference: Any = None

    def enter(self) -> None:
        """Replaces the caller's state by the call's; the first time, the call starts with the caller's."""
        self._outer = _flags()
        self._outer_modes = torch._C._len_torch_function_stack()
        self._outer_inference = torch.is_inference_mode_enabled()
        if self._inference is not None:
            self._inference.__exit__(None, None, None)
            self._inference = None
        if self._own is not None and self._own != _flags():
            _set_flags(self._own)
        for mode in self._own_modes:
            torch._C._push_on_torch_function_stack(mode)

    def leave(self) -> None:
        """Saves the call's state and restores the caller's."""
        modes = []
        while torch._C._len_torch_function_stack() > self._outer_modes:
            modes.append(torch._C._pop_torch_function_stack())
        self._own_modes = modes[::-1]
        self._own = _flags()
        if torch.is_inference_mode_enabled() != self._outer_inference:
            # A guard on top of the call's own, which also changes the grad mode; leaving it restores the call's mode.
            self._inference = torch._C._InferenceMode(self._outer_inference)
            self._inference.__enter__()
        if self._outer != _flags():
            _set_flags(self._outer)


Processors = tuple[tuple[Any, Any], ...]
"""Attention layers with the processors that a call has set on them, as perturbed-attention guidance does."""


def attention_layers(pipe: Any) -> list[Any]:
    """The layers of a pipeline's networks that have an attention processor."""
    networks = (part for part in vars(pipe).values() if isinstance(part, torch.nn.Module))
    layers = (layer for network in networks for layer in network.modules())
    return [layer for layer in layers if hasattr(layer, "processor") and hasattr(layer, "set_processor")]


def set_processors(processors: Sequence[tuple[Any, Any]]) -> Processors:
    """Sets the processors of attention layers; returns the previous ones."""
    before = tuple((layer, layer.processor) for layer, _ in processors)
    for layer, processor in processors:
        layer.set_processor(processor)
    return before


@contextmanager
def with_processors(processors: Processors) -> Iterator[None]:
    """Context manager in which attention layers have a call's processors; all calls share the layers."""
    before = set_processors(processors)
    try:
        yield
    finally:
        set_processors(before)


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
        if isinstance(strength, numbers.Real) and int(strength * steps) < 1:
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
                f"change them; {WHERE}",
            ) from error
        raise CapabilityError(
            f"{what} of {type(pipe).__name__} failed: {in_a_line(error)[:200]}",
            f"give what it needs, for example height=, width=, image=, ip_adapter_image=, prompt_embeds=; {WHERE}; "
            "or use the pipeline class that its network and its scheduler were made for",
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

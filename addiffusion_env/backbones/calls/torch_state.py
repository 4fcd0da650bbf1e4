"""Torch's thread state across greenlets: modes set by a suspended pipeline call must not affect other calls.

Grad mode, inference mode, autocast and the stack of torch-function modes (``torch.device`` as a context manager) belong
to the thread, and all open calls share one thread. Each call's state is therefore restored when the call is resumed,
and the caller's state when the call is suspended.
"""

from __future__ import annotations

from typing import Any

import torch

AUTOCAST_DEVICES = ("cpu", "cuda")


def _flags() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_autocast_cache_enabled(),
        *((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in AUTOCAST_DEVICES),
    )


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

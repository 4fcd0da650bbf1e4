"""Torch's thread state across greenlets: what a suspended pipeline call has switched on must not reach its neighbours.

Grad mode, inference mode, autocast and the stack of torch-function modes (``torch.device`` as a context manager) belong
to the thread, and all open calls share one thread. Each call therefore takes its own state along when it is resumed,
and leaves its caller's behind when it is suspended.
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

    Use it in pairs: :meth:`enter` before the call is resumed, :meth:`leave` once it is suspended again or has ended.
    """

    def __init__(self) -> None:
        self._own: tuple[Any, ...] | None = None
        self._own_modes: list[Any] = []
        self._inference: Any = None

    def enter(self) -> None:
        """Puts the call's state in place of the caller's; at the first time the caller's own is kept."""
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
        """Keeps the call's state and puts the caller's back."""
        modes = []
        while torch._C._len_torch_function_stack() > self._outer_modes:
            modes.append(torch._C._pop_torch_function_stack())
        self._own_modes = modes[::-1]
        self._own = _flags()
        if torch.is_inference_mode_enabled() != self._outer_inference:
            # A guard on top of the call's own, which changes the grad mode too; leaving it restores the call's mode.
            self._inference = torch._C._InferenceMode(self._outer_inference)
            self._inference.__enter__()
        if self._outer != _flags():
            _set_flags(self._outer)

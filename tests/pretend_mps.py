"""A simulated Apple GPU: the CPU computes, under the restrictions of MPS.

Tensors moved to the device are marked. A marked tensor reports the device ``mps``, and so do results computed from it;
float64 on the device, numpy on the device, and arithmetic between device and CPU are errors, as on MPS.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

MPS = torch.device("mps")
INDEXING = {Tensor.__getitem__, Tensor.__setitem__}  # a CPU index, or a CPU number to write, is allowed
MOVES = {Tensor.to, Tensor.cpu}


def marked(value: object) -> bool:
    """Whether a value is a tensor on the device."""
    return isinstance(value, Tensor) and getattr(value, "_on_mps", False)


def mark(value: object) -> object:
    """Puts a tensor on the device."""
    if isinstance(value, Tensor):
        if value.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        value._on_mps = True
    return value


def send(module: nn.Module) -> None:
    """Puts a module's parameters and buffers on the device."""
    for tensor in (*module.parameters(), *module.buffers()):
        mark(tensor)


class PretendMps(TorchFunctionMode):
    """Context manager within which ``torch.device("mps")`` can be used.

    Attributes:
        operations: number of operations on the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return MPS if marked(args[0]) else func(*args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__) and marked(args[0]):
            raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if func in MOVES:
            return self._move(func, args, kwargs)
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        on = any(map(marked, tensors))
        if self._wants_device(kwargs):
            on = True
            kwargs["device"] = "cpu"
        elif on and func not in INDEXING and func.__name__ != "__get__":
            strangers = [tensor for tensor in tensors if not marked(tensor) and tensor.ndim > 0]
            if strangers:
                raise RuntimeError(
                    f"{func}: expected all tensors on one device, found mps and cpu {strangers[0].shape}"
                )
        result = func(*args, **kwargs)
        if not on:
            return result
        self.operations += 1
        return tree_map(mark, result)

    @staticmethod
    def _wants_device(kwargs) -> bool:
        device = kwargs.get("device")
        return device is not None and torch.device(device).type == "mps"

    def _move(self, func, args, kwargs):
        """Handles ``to`` and ``cpu``: the device is removed from the arguments, and the call runs on the CPU."""
        tensor, *rest = args
        target = "cpu" if func is Tensor.cpu else None
        kept = []
        for value in rest:
            if isinstance(value, (torch.device, str)):
                target = torch.device(value).type
            elif isinstance(value, Tensor):
                target = "mps" if marked(value) else "cpu"
                kept.append(value.dtype)
            else:
                kept.append(value)
        if kwargs.get("device") is not None:
            target = torch.device(kwargs["device"]).type
        kwargs.pop("device", None)
        after = target or ("mps" if marked(tensor) else "cpu")
        moved = tensor.to(*kept, **kwargs) if kept or kwargs else tensor
        if after == "mps":
            if marked(tensor) or moved is not tensor:
                return mark(moved)
            return mark(tensor.view_as(tensor) if tensor.dtype != torch.float64 else tensor)
        return moved.detach().view_as(moved) if marked(moved) else moved

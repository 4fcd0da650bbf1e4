"""Stand-ins for a pipeline's components: same class and attributes, but calls are routed to an open call.

They call its :meth:`.OpenCall.on_network`, ``on_step``, ``on_decode``, ``on_next`` and ``length``.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class StepOutput(SimpleNamespace):
    """A scheduler's output object."""

    def __getitem__(self, key: Any) -> Any:
        """The field of that name; for an index, the latents."""
        return getattr(self, key) if isinstance(key, str) else self.prev_sample


class LazyTimesteps(Tensor):
    """A scheduler's ``timesteps`` whose iteration requests each next timestep from the open call.

    Slices stay lazy; indexing, comparisons and arithmetic are those of a plain tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    call: Any
    offset: int
    changed: dict[int, Any]

    @staticmethod
    def of(times: Tensor, call: Any, offset: int = 0) -> LazyTimesteps:
        """The lazy form of (m,) timesteps that start at index ``offset`` of the scheduler's."""
        made = times.detach().clone().as_subclass(LazyTimesteps)
        made.call, made.offset, made.changed = call, offset, {}
        return made

    def plain(self) -> Tensor:
        """The same numbers as an ordinary tensor."""
        return self.as_subclass(Tensor)

    def __iter__(self) -> Iterator[Any]:
        while (time := self.call.on_next(self)) is not None:
            yield time
            if self.call.only_reads():
                yield from self.plain()[1:]
                return

    def __len__(self) -> int:
        return self.call.length(self)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            start = range(self.shape[0])[key].start
            return LazyTimesteps.of(self.plain()[key], self.call, self.offset + start)
        if isinstance(key, int) and key in self.changed:
            time = torch.as_tensor(self.changed[key])
            # Schedulers with whole timesteps look noise levels up by them.
            return time if self.is_floating_point() else time.round().to(self.dtype)
        return self.plain()[key]


def is_scheduler(part: Any) -> bool:
    """Whether a component is a diffusers scheduler or has the same interface."""
    return hasattr(part, "set_timesteps") and hasattr(part, "step") and hasattr(part, "config")


def scheduler_values(scheduler: Any) -> dict[str, Any]:
    """A scheduler's attributes with lists copied, so that its steps do not change other copies."""
    values = {}
    for name, value in scheduler.__dict__.items():
        if name == "_open_call":
            continue
        if isinstance(value, LazyTimesteps):
            value = value.plain()
        values[name] = copied(value)
    return values


def copied(value: Any) -> Any:
    """A copy of a list or dict; other values as they are."""
    return copy.copy(value) if isinstance(value, list | dict) else value


def scheduler_copy(scheduler: Any, kind: Any = None) -> Any:
    """A copy of a scheduler, of its own class (that of the real one for a stand-in) or of ``kind``."""
    own = type(scheduler).__mro__[1] if "_open_call" in scheduler.__dict__ else type(scheduler)
    made: Any = object.__new__(kind or own)
    made.__dict__.update(scheduler_values(scheduler))
    return made


def scheduler_stand_in(scheduler: Any, call: Any) -> Any:
    """A copy of a scheduler whose ``step`` and ``timesteps`` belong to an open call."""
    kind: Any = type(scheduler)
    made = scheduler_copy(scheduler, _scheduler_class(kind))
    made.__dict__["_open_call"] = call
    return made


@functools.cache
def _scheduler_class(kind: type) -> type:
    class Same(type(kind)):  # type: ignore[misc]
        """Some pipelines compare ``type(scheduler)`` by ``==``."""

        def __eq__(cls, other: object) -> bool:
            return other is kind or type.__eq__(cls, other) is True

        def __hash__(cls) -> int:
            return hash(kind)

    parameters = list(inspect.signature(kind.step).parameters.values())[1:]  # type: ignore[attr-defined]
    names = [own.name for own in parameters if own.kind in (own.POSITIONAL_ONLY, own.POSITIONAL_OR_KEYWORD)]

    @functools.wraps(kind.step)  # type: ignore[attr-defined]
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) > len(names):
            raise TypeError(f"{kind.__name__}.step got {len(args)} positional arguments, it names {len(names)}")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        output, time, sample = (given.pop(name) for name in names[:3])
        return self._open_call.on_step(output, time, sample, given)

    @functools.wraps(kind.set_timesteps)  # type: ignore[attr-defined]
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = kind.set_timesteps(self, *args, **kwargs)  # type: ignore[attr-defined]
        self.timesteps = LazyTimesteps.of(torch.as_tensor(self.timesteps), self._open_call)
        return result

    return Same(kind.__name__, (kind,), {"step": step, "set_timesteps": set_timesteps, "__module__": kind.__module__})


def module_stand_in(module: nn.Module, name: str, call: Any) -> Any:
    """A stand-in of a network whose ``__call__`` and ``decode`` (if it has one) are routed to an open call."""
    kind: Any = type(module)
    made: Any = object.__new__(_module_class(kind, callable(getattr(module, "decode", None))))
    # The same dict object: changes of the real module by hooks, adapters or the user are visible here.
    object.__setattr__(made, "__dict__", module.__dict__)
    for slot, value in (("_open_call", call), ("_component", name), ("_real", module)):
        object.__setattr__(made, slot, value)
    return made


@functools.cache
def _module_class(kind: type, decodes: bool) -> type:
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._open_call.on_network(self._component, self._real, args, kwargs)

    def decode(self: Any, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._open_call.on_decode(self._real, latents, args, kwargs)

    # Slots, since the instance's dict is the real module's.
    parts: dict[str, Any] = {"__slots__": ("_open_call", "_component", "_real"), "__call__": called}
    if decodes:
        parts["decode"] = functools.wraps(kind.decode)(decode)  # type: ignore[attr-defined]
    return type(kind)(kind.__name__, (kind,), {**parts, "__module__": kind.__module__})


@functools.cache
def pipeline_class(kind: Any) -> Any:
    """A subclass of a pipeline's class with a stored device, which otherwise is searched in all modules at each use."""
    if not isinstance(getattr(kind, "_execution_device", None), property):
        return kind
    parts = {"_execution_device": property(lambda self: self.__dict__["_device"]), "__module__": kind.__module__}
    return type(kind)(kind.__name__, (kind,), parts)

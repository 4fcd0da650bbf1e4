"""Traces of tensor operations in Python code: recorded as a linear list and replayed for many lanes at once.

A :class:`Recorder` records every operation that depends on marked tensors, from a pipeline's latents to the arguments
of its scheduler, including network calls. All other values that operations and network calls read are ``slots``:
numbers of the step, tensors of the prompt. The list is replayed under ``torch.vmap``, so that each lane's arithmetic is
the same as when the lane runs alone.

Random numbers, in-place operations, and Python branches on tensor values cannot be replayed; they invalidate a
recording (:attr:`Recorder.failed`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from addiffusion_env.backbones.calls.trees import entries, rebuilt

SMALL = 16
"""Maximum size of tensors that are copied when recorded: numbers of a plan, which schedulers overwrite."""


@dataclass(frozen=True, slots=True)
class Var:
    """A tensor that depends on the marked tensors."""

    number: int


@dataclass(frozen=True, slots=True)
class Slot:
    """A value that does not depend on the marked tensors."""

    number: int


class Operation(NamedTuple):
    """One torch operation.

    Attributes:
        function: the operator.
        args: its positional arguments, with :class:`Var` and :class:`Slot` for tensors.
        kwargs: its keyword arguments, sorted by name.
        made: the variables that it produces.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: tuple[Any, ...]
    made: Any


class NetworkCall(NamedTuple):
    """A network call between operations.

    Attributes:
        site: see :class:`NetworkRequest`.
        module: ``id`` of the network.
        args: its arguments as a tree of :class:`Var` and :class:`Slot`.
        kwargs: its keyword arguments, likewise.
        made: the variables in its output.
    """

    site: tuple[str, int]
    module: int
    args: Any
    kwargs: Any
    made: tuple[Var, ...]


class Recorder(TorchDispatchMode):
    """Records operations on marked tensors while it is active.

    Attributes:
        slots: values that do not depend on marked tensors.
        failed: whether an operation occurred that cannot be replayed.
        requests: the network requests.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slots: list[Any] = []
        self.failed = False
        self.requests: list[Any] = []
        self._steps: list[Operation | NetworkCall] = []
        self._known: dict[int, tuple[Tensor, Var | Slot]] = {}  # tensors are kept alive, so that ids are unique
        self._count = 0
        self._running = False

    @property
    def marked(self) -> bool:
        """Whether any tensors are marked."""
        return self._count > 0

    def start(self) -> None:
        """Starts recording, if it is not active."""
        if not self._running:
            self._running = True
            self.__enter__()

    def stop(self) -> None:
        """Stops recording, if it is active."""
        if self._running:
            self._running = False
            self.__exit__(None, None, None)

    def mark(self, value: Any) -> tuple[Var, ...]:
        """Marks the tensors in a value, so that operations on them are recorded."""
        if isinstance(value, Tensor):
            made = Var(self._count)
            self._count += 1
            self._known[id(value)] = (value, made)
            return (made,)
        return tuple(var for part in entries(value) or () for var in self.mark(part))

    def asked(self, request: Any) -> None:
        """Records the start of a network call."""
        self.requests.append(request)
        self._asked = (request.site, id(request.module), self.tree(request.args), self.tree(request.kwargs))

    def answered(self, answer: Any) -> None:
        """Records the output of the network call."""
        self._steps.append(NetworkCall(*self._asked, self.mark(answer)))

    def program(self, results: Any) -> Program | None:
        """The recorded program that computes ``results``, a tree of values; ``None`` if it cannot be replayed."""
        tree = self.tree(results)
        return None if self.failed else Program(tuple(self._steps), tree, len(self.slots))

    def tree(self, value: Any) -> Any:
        """A value with :class:`Var` and :class:`Slot` in place of its leaves."""
        if isinstance(value, Tensor):
            return self._tensor(value)
        parts = entries(value)
        if parts is not None:
            names = tuple(value) if isinstance(value, dict) else ()
            return (type(value).__name__, names, *(self.tree(part) for part in parts))
        self.slots.append(value)
        return Slot(len(self.slots) - 1)

    def _tensor(self, value: Tensor) -> Var | Slot:
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        made = Slot(len(self.slots))
        self._known[id(value)] = (value, made)
        self.slots.append(value.clone() if value.numel() <= SMALL else value)
        return made

    def _operand(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, list | tuple):
            return tuple(self._operand(entry) for entry in value)
        return (type(value), value)

    def _depends(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            known = self._known.get(id(value))
            return known is not None and type(known[1]) is Var
        return isinstance(value, list | tuple) and any(self._depends(entry) for entry in value)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and records it if it depends on marked tensors."""
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if not self._depends(args) and not self._depends(tuple(kwargs.values())):
            # Random numbers of a step belong to each lane.
            self.failed |= torch.Tag.nondeterministic_seeded in func.tags
            return found
        several = isinstance(found, list | tuple)
        made = list(found) if several else [found]
        if func._schema.is_mutable or not all(isinstance(part, Tensor) for part in made):
            self.failed = True
            return found
        read = tuple(self._operand(value) for value in args)
        named = tuple((name, self._operand(kwargs[name])) for name in sorted(kwargs))
        new = tuple(self.mark(part)[0] for part in made)
        self._steps.append(Operation(func, read, named, new if several else new[0]))
        return found


@dataclass(frozen=True, eq=False)
class Segment:
    """Operations without a network call between them.

    Attributes:
        operations: in order.
        reads: variables from before.
        slots: that they read.
        gives: variables that are read afterwards.
    """

    __name__ = "segment"  # torch.vmap names its function, at the cost of a representation of it where it has no name

    operations: tuple[Operation, ...]
    reads: tuple[int, ...]
    slots: tuple[int, ...]
    gives: tuple[int, ...]

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The values of ``gives`` from those of ``reads`` and ``slots``."""
        held = dict(zip(self.reads, values, strict=False))
        slots = dict(zip(self.slots, values[len(self.reads) :], strict=True))

        def value(operand: Any) -> Any:
            kind = type(operand)
            if kind is Var:
                return held[operand.number]
            if kind is Slot:
                return slots[operand.number]
            if len(operand) == 2 and isinstance(operand[0], type):
                return operand[1]
            return [value(entry) for entry in operand]

        for function, args, kwargs, made in self.operations:
            found = function(*map(value, args), **{name: value(operand) for name, operand in kwargs})
            if type(made) is Var:
                held[made.number] = found
            else:
                held.update(zip((var.number for var in made), found, strict=True))
        return tuple(held[number] for number in self.gives)


class Program:
    """A recording, without the values of its slots.

    Two recordings with equal ``form`` are the same program.

    Attributes:
        form: hashable representation of the program.
        results: tree of its results.
        size: number of slots.
        calls: its network calls.
        segments: the operations before each network call, and after the last.
        like: the recorded network requests without their tensors, as templates of containers.
    """

    def __init__(self, steps: tuple[Operation | NetworkCall, ...], results: Any, size: int) -> None:
        self.form = (steps, results)
        self.results, self.size = results, size
        self.like: Sequence[Any] = ()
        self.calls = [step for step in steps if isinstance(step, NetworkCall)]
        parts: list[list[Operation]] = [[]]
        for step in steps:
            if isinstance(step, NetworkCall):
                parts.append([])
            else:
                parts[-1].append(step)
        self.segments: list[Segment] = []
        after = leaves(results, Var)
        for position in range(len(parts) - 1, -1, -1):
            made = {var.number for op in parts[position] for var in leaves(op.made, Var)}
            read = {var.number for op in parts[position] for var in leaves((op.args, op.kwargs), Var)}
            slots = {slot.number for op in parts[position] for slot in leaves((op.args, op.kwargs), Slot)}
            gives = made & {var.number for var in after}
            part = Segment(tuple(parts[position]), *(tuple(sorted(x)) for x in (read - made, slots, gives)))
            self.segments.insert(0, part)
            after = [*after, *map(Var, read)]
            if position:
                call = self.calls[position - 1]
                after += leaves((call.args, call.kwargs), Var)

    @functools.cached_property
    def first_slots(self) -> frozenset[int]:
        """Slots that the first network call reads."""
        return frozenset(leaf.number for leaf in leaves((self.calls[0].args, self.calls[0].kwargs), Slot))

    @property
    def operands(self) -> set[int]:
        """Slots that operations read; the others are read only by networks."""
        return {number for segment in self.segments for number in segment.slots}

    def advance(self, position: int, held: dict[int, Tensor], slots: Callable[[int], Any], lanes: int) -> None:
        """Runs a segment for several lanes.

        Args:
            position: index of the segment.
            held: variable -> its value for each lane, (lanes, ...); computed variables are added.
            slots: slot -> (its value, whether the first axis is the lane axis).
            lanes: number of lanes.
        """
        segment = self.segments[position]
        if not segment.gives:
            return
        columns = [(held[number], True) for number in segment.reads] + [slots(number) for number in segment.slots]
        if lanes == 1:
            made = segment(*(value[0] if counted else value for value, counted in columns))
            held.update((number, value[None]) for number, value in zip(segment.gives, made, strict=True))
            return
        axes = tuple(0 if counted else None for _, counted in columns)
        made = torch.vmap(segment, axes)(*(value for value, _ in columns))
        held.update(zip(segment.gives, made, strict=True))


def filled(tree: Any, like: Any, held: Callable[[int], Any], slots: Callable[[int], Any]) -> Any:
    """The value that a tree represents.

    Args:
        tree: a tree from :meth:`Recorder.tree`.
        like: the value that the tree was created from, as a template for containers.
        held: returns the value of a variable.
        slots: returns the value of a slot.
    """
    kind = type(tree)
    if kind is Var:
        return held(tree.number)
    if kind is Slot:
        return slots(tree.number)
    parts = entries(like) or ()
    return rebuilt(like, [filled(part, own, held, slots) for part, own in zip(tree[2:], parts, strict=True)])


def column(values: Sequence[Any], device: torch.device) -> tuple[Any, bool]:
    """The values of one slot in several lanes, in the form that :meth:`Program.advance` takes."""
    first = values[0]
    if all(value is first for value in values):
        return first, False
    return torch.stack(list(values)).to(device), True


def leaves(tree: Any, kind: Any) -> list[Any]:
    """The variables or the slots in a tree."""
    if type(tree) is kind:
        return [tree]
    return [] if not isinstance(tree, tuple) else [leaf for part in tree for leaf in leaves(part, kind)]


def same(one: Any, two: Any) -> bool:
    """Whether two values of a slot are equal."""
    if one is two:
        return True
    if isinstance(one, Tensor) or isinstance(two, Tensor):
        if not (isinstance(one, Tensor) and isinstance(two, Tensor)):
            return False
        alike = one.shape == two.shape and one.dtype == two.dtype and one.device == two.device
        return alike and torch.equal(one, two)
    plain = isinstance(one, bool | int | float | str | torch.dtype | torch.device)
    return plain and type(one) is type(two) and bool(one == two)

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
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

CONTAINERS = (list, tuple, dict)

SMALL = 16
"""Maximum size of tensors that are copied when recorded: numbers of a plan, which schedulers overwrite."""


def flattened(value: Any) -> tuple[list[Any], TreeSpec]:
    """The leaves of nested lists, tuples and dicts, and their structure.

    Other containers are leaves, also those known to torch (a cache of keys and values that was exported).
    """
    return tree_flatten(value, is_leaf=lambda part: not isinstance(part, CONTAINERS))


@dataclass(frozen=True, slots=True)
class Var:
    """A tensor that depends on the marked tensors."""

    number: int


@dataclass(frozen=True, slots=True)
class Slot:
    """A value that does not depend on the marked tensors."""

    number: int


@dataclass(frozen=True)
class Tree:
    """A nested value with a variable or a slot in place of each leaf."""

    leaves: tuple[Var | Slot, ...]
    structure: TreeSpec = field(hash=False)  # it has no hash

    def filled(self, variable: Callable[[int], Any], slot: Callable[[int], Any]) -> Any:
        """The value, with functions that return the value of a variable and of a slot."""
        values = (variable(leaf.number) if type(leaf) is Var else slot(leaf.number) for leaf in self.leaves)
        return tree_unflatten(values, self.structure)


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
        site, module, form, processors: see :class:`NetworkRequest`.
        inputs: its arguments.
        made: the variables in its output.
    """

    site: tuple[str, int]
    module: Any
    form: tuple
    processors: tuple
    inputs: Tree
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
        tensors = [part for part in flattened(value)[0] if isinstance(part, Tensor)]
        made = tuple(map(Var, range(self._count, self._count + len(tensors))))
        self._count += len(tensors)
        self._known.update((id(tensor), (tensor, var)) for tensor, var in zip(tensors, made, strict=True))
        return made

    def asked(self, request: Any) -> None:
        """Records the start of a network call."""
        self.requests.append(request)
        kind = (request.site, request.module, request.form, request.processors)
        self._asked = (*kind, self.tree(request.inputs))

    def answered(self, answer: Any) -> None:
        """Records the output of the network call."""
        self._steps.append(NetworkCall(*self._asked, self.mark(answer)))

    def program(self, results: Any) -> Program | None:
        """The recorded program that computes ``results``, a nested value; ``None`` if it cannot be replayed."""
        tree = self.tree(results)
        return None if self.failed else Program(tuple(self._steps), tree, len(self.slots))

    def tree(self, value: Any) -> Tree:
        """A value with :class:`Var` and :class:`Slot` in place of its leaves."""
        leaves, structure = flattened(value)
        return Tree(tuple(map(self._leaf, leaves)), structure)

    def _leaf(self, value: Any) -> Var | Slot:
        if isinstance(value, Tensor):
            return self._tensor(value)
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
        kinds: of slots that networks read, the kind of argument (:class:`joining.Layout`).
    """

    def __init__(self, steps: tuple[Operation | NetworkCall, ...], results: Tree, size: int) -> None:
        self.form = (steps, results)
        self.results, self.size = results, size
        self.kinds: dict[int, int | str] = {}
        self.calls = [step for step in steps if isinstance(step, NetworkCall)]
        parts: list[list[Operation]] = [[]]
        for step in steps:
            if isinstance(step, NetworkCall):
                parts.append([])
            else:
                parts[-1].append(step)
        self.segments: list[Segment] = []
        after = leaves(results.leaves, Var)
        for position in range(len(parts) - 1, -1, -1):
            made = {var.number for op in parts[position] for var in leaves(op.made, Var)}
            read = {var.number for op in parts[position] for var in leaves((op.args, op.kwargs), Var)}
            slots = {slot.number for op in parts[position] for slot in leaves((op.args, op.kwargs), Slot)}
            gives = made & {var.number for var in after}
            part = Segment(tuple(parts[position]), *(tuple(sorted(x)) for x in (read - made, slots, gives)))
            self.segments.insert(0, part)
            after = [*after, *map(Var, read)]
            if position:
                after += leaves(self.calls[position - 1].inputs.leaves, Var)

    @functools.cached_property
    def first_slots(self) -> frozenset[int]:
        """Slots that the first network call reads."""
        return frozenset(leaf.number for leaf in leaves(self.calls[0].inputs.leaves, Slot))

    @property
    def operands(self) -> set[int]:
        """Slots that operations read; the others are read only by networks."""
        return {number for segment in self.segments for number in segment.slots}

    def advance(
        self, position: int, held: dict[int, Tensor], slots: Callable[[int], Sequence[Any]], lanes: int
    ) -> None:
        """Runs a segment for several lanes.

        Args:
            position: index of the segment.
            held: variable -> its value for each lane, (lanes, ...); computed variables are added.
            slots: slot -> its value for each lane.
            lanes: number of lanes.
        """
        segment = self.segments[position]
        if not segment.gives:
            return
        device = held[0].device
        columns = [(held[number], True) for number in segment.reads]
        columns += [_column(slots(number), device) for number in segment.slots]
        if lanes == 1:
            made = segment(*(value[0] if counted else value for value, counted in columns))
            held.update((number, value[None]) for number, value in zip(segment.gives, made, strict=True))
            return
        axes = tuple(0 if counted else None for _, counted in columns)
        made = torch.vmap(segment, axes)(*(value for value, _ in columns))
        held.update(zip(segment.gives, made, strict=True))


def _column(values: Sequence[Any], device: torch.device) -> tuple[Any, bool]:
    """One slot in several lanes: (its value, whether the first axis is the lane axis)."""
    first = values[0]
    if all(value is first for value in values):
        return first, False
    return torch.stack(list(values)).to(device), True


def leaves(tree: Any, kind: Any) -> list[Any]:
    """The variables or the slots in nested operands."""
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

"""Recorded iterations of a pipeline's loop, and lanes that replay one together."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from addiffusion_env.backbones.calls.joining import Lanes
from addiffusion_env.backbones.calls.open_call import AtStep, NetworkRequest
from addiffusion_env.backbones.calls.recording import Program, column, filled
from addiffusion_env.backbones.calls.requests import EvaluationResult
from addiffusion_env.backbones.calls.trees import tensors_in


@dataclass(eq=False)
class Turn:
    """One recorded iteration of a pipeline's loop; it is kept, so it holds nothing of the latents' size.

    Attributes:
        program: the recorded program.
        slots: the values of its slots.
        time: the ``timestep`` argument of the scheduler's step.
        args: its further positional arguments.
        kwargs: its keyword arguments.
        at: (index in the plan, noise level).
        keys: see :meth:`Replays._number`.
    """

    program: Program
    slots: list[Any]
    time: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    at: tuple[int, float]
    keys: dict[tuple[frozenset[int], bool], int] = field(default_factory=dict)


@dataclass(eq=False)
class KnownStep:
    """A known step of some settings.

    Attributes:
        turn: the recorded iteration of one lane.
        lane: that lane.
        steady: slots with the same value as in that lane's first recorded iteration; ``None`` if this is the first.
        proven: lane-specific slots for which another lane's iteration was predicted correctly; ``None`` before that.
        wrong: whether a prediction was incorrect.
    """

    turn: Turn
    lane: Lane
    steady: frozenset[int] | None
    proven: frozenset[int] | None = None
    wrong: bool = False


@dataclass(eq=False)
class Settings:
    """Knowledge shared by all lanes with the same settings.

    Attributes:
        arguments: those of the settings; some are known by their id, which is not reused while they are kept alive.
        steps: (index in the plan, noise level) -> the step.
        own: for each program, the lane-specific slots.
        failures: number of failed recordings.
    """

    arguments: Mapping[str, Any]
    steps: OrderedDict[tuple[int, float], KnownStep] = field(default_factory=OrderedDict)
    own: dict[Program, frozenset[int]] = field(default_factory=dict)
    failures: int = 0


@dataclass(eq=False)
class Lane:
    """A request at one guidance scale.

    Attributes:
        settings: knowledge that it shares with other lanes.
        negative: key of its negative prompt.
        registered: its first recorded iteration of each program.
    """

    settings: Settings
    negative: Any
    registered: dict[Program, Turn] = field(default_factory=dict)


class Block:
    """Lanes that replay one program together; the networks receive one request of several images.

    Args:
        members: for each lane the position of its evaluation, its first recorded iteration, and the step.
        own: lane-specific slots.
        x: (lanes, ...) latents.
        shared: the lanes' own values in the last step, (program's id, slot) -> values: prompts that are joined already.

    Attributes:
        lanes: positions of the evaluations.
        requests: the waiting network request; empty at the scheduler's step.
    """

    def __init__(
        self,
        members: Sequence[tuple[int, Turn, KnownStep]],
        own: frozenset[int],
        x: Tensor,
        shared: dict[tuple[int, int], Lanes],
    ) -> None:
        self.members, self._shared = members, shared
        self.lanes = [at for at, _, _ in members]
        self.program = members[0][2].turn.program
        self.requests: list[NetworkRequest] = []
        # One lane is held as it is: networks round by the memory format of their input, which x[:, None] would change.
        self._own, self._held, self._position = own, {0: x[None] if len(members) == 1 else x[:, None]}, -1
        self._resume()

    def answer(self, value: Any) -> None:
        """Answers the request with tensors (lanes, ...)."""
        made = self.program.calls[self._position].made
        tensors = tensors_in(value)
        if len(self.lanes) == 1:
            tensors = [tensor[None] for tensor in tensors]
        self._held.update((var.number, tensor) for var, tensor in zip(made, tensors, strict=True))
        self._resume()

    def _resume(self) -> None:
        self._position += 1
        lanes = len(self.lanes)
        self.program.advance(self._position, self._held, self._column, lanes)
        self.requests = []
        if self._position == len(self.program.calls):
            return
        call, like = self.program.calls[self._position], self.program.like[self._position]
        args = filled(call.args, like.args, self._variable, self._value)
        kwargs = filled(call.kwargs, like.kwargs, self._variable, self._value)
        request = NetworkRequest(call.site, like.module, args, kwargs, like.form, lanes)
        self.requests.append(request)

    def _values(self, number: int) -> list[Any]:
        if number in self._own:
            return [lane.slots[number] for _, lane, _ in self.members]
        return [step.turn.slots[number] for _, _, step in self.members]

    def _variable(self, number: int) -> Any:
        held = self._held[number]
        return held[0] if len(self.lanes) == 1 else Lanes(held)

    def _value(self, number: int) -> Any:
        values = self._values(number)
        if all(value is values[0] for value in values):
            return values[0]
        if number not in self._own:
            return Lanes(values)
        place = (id(self.program), number)
        last = self._shared.get(place)
        if last is None or len(last.values) != len(values) or not all(map(operator.is_, last.values, values)):
            last = self._shared[place] = Lanes(values)
        return last

    def _column(self, number: int) -> tuple[Any, bool]:
        return column(self._values(number), self._held[0].device)

    def found(self, rows: Mapping[int, int]) -> list[EvaluationResult]:
        """The result of each lane; ``rows`` are the network rows by lane position."""
        _, _, output, sample, _ = self.program.results
        outputs, samples = self._held[output.number], self._held[sample.number]
        found = []
        for (at, lane, step), out, x in zip(self.members, outputs.unbind(), samples.unbind(), strict=True):
            given = AtStep(out, step.turn.time, x, lane.args, lane.kwargs)
            found.append(EvaluationResult(given, rows[at]))
        return found

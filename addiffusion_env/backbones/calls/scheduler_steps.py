"""Steps of many lanes with their pipeline's own scheduler, recorded once and replayed together.

A step is a function of the model's output, the latents and the scheduler's state of the lane; everything else it reads
belongs to the plan. This is verified on the step of a second lane. Steps that draw random numbers, branch on values or
enter the plan from outside are taken one by one (:meth:`SchedulerPlan.step`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from addiffusion_env.backbones.calls.open_call import AtStep
from addiffusion_env.backbones.calls.recording import Program, Recorder, column, filled, leaves, same
from addiffusion_env.backbones.calls.scheduler_plan import SchedulerPlan
from addiffusion_env.backbones.calls.trees import entries, tensors_in

KEPT = 8192
"""Maximum number of recorded steps."""


class StepRequest(NamedTuple):
    """One lane's step; see :meth:`SchedulerPlan.step`."""

    plan: SchedulerPlan
    state: Mapping[str, Any] | None
    step_index: int
    at: AtStep


States = list[dict[str, Any] | None]
"""The scheduler's state of each lane after its step; ``None`` if the scheduler cannot enter its plan."""


@dataclass(eq=False)
class RecordedStep:
    """A recorded step.

    Attributes:
        program: maps the model's output, the latents and the state's tensors to the next ones.
        slots: other values that it reads.
        values: the scheduler's state afterwards, without the tensors that depend on a lane's.
        shapes: shapes of the slots that operations read.
        proven: whether the step of another lane was equal.
        after: :func:`_form` of ``values``, once it was needed: that of every lane after this step.
    """

    program: Program
    slots: list[Any]
    values: dict[str, Any]
    shapes: tuple[Any, ...]
    proven: bool = False
    after: Any = None


class SchedulerSteps:
    """The recorded steps of one pipeline's scheduler."""

    def __init__(self) -> None:
        self._known: dict[Any, RecordedStep | None] = {}
        self._programs: dict[Any, Program] = {}
        self._forms: dict[int, tuple[Any, Any]] = {}  # of the states after the last call, by id

    def step(self, wanted: Sequence[StepRequest]) -> tuple[Tensor | None, States]:
        """Takes one step of each lane.

        Returns:
            (N, ...) latents of the N lanes that have a state afterwards, in their order (``None`` for no lane), and the
            states of all lanes.
        """
        states: States = [None] * len(wanted)
        parts: list[tuple[list[int], Tensor]] = []
        groups: dict[Any, list[tuple[int, RecordedStep]]] = {}
        for row, lane in enumerate(wanted):
            key = self._key(lane)
            known = self._known.get(key)
            if known is not None and known.proven:
                groups.setdefault((known.program, known.shapes), []).append((row, known))
            elif (taken := self._recorded(key, lane)) is not None:
                parts.append(([row], taken[0]))
                states[row] = taken[1]
        forms: dict[int, tuple[Any, Any]] = {}
        for group in groups.values():
            rows = [row for row, _ in group]
            latents, after = self._replayed([wanted[row] for row in rows], [known for _, known in group])
            parts.append((rows, latents))
            for (row, known), state in zip(group, after, strict=True):
                states[row] = state
                if known.after is not None:
                    forms[id(state["values"])] = (state["values"], known.after)
        self._forms = forms
        if len(parts) < 2:
            return (parts[0][1] if parts else None), states
        order = [row for rows, _ in parts for row in rows]
        place = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat([latents for _, latents in parts])[place], states

    def _key(self, lane: StepRequest) -> Any:
        """A key that is equal for steps of one plan that read the same values; ``None`` for one never replayed."""
        plan, state, index, at = lane
        given = tuple((name, value) for name, value in at.kwargs.items() if name != "generator")
        if at.args or not all(isinstance(value, bool | int | float | str | None) for _, value in given):
            return None
        on_way = state is not None and state["index"] == index
        values = None
        if state is not None and on_way:
            kept = self._forms.get(id(state["values"]))
            values = _form(state["values"]) if kept is None else kept[1]
        return (plan, index, on_way, values, given, at.sample.shape, at.output.shape, at.sample.dtype, at.output.dtype)

    def _recorded(self, key: Any, lane: StepRequest) -> tuple[Tensor, dict[str, Any]] | None:
        plan, state, index, at = lane
        if key is None or self._known.get(key, plan) is None or len(self._known) > KEPT:
            return plan.step(state, index, at)
        recorder = Recorder()
        recorder.mark((at.output, at.sample, *_remembered(state)))
        recorder.start()
        try:
            found = plan.step(state, index, at)
        finally:
            recorder.stop()
        if found is None:
            return None
        latents, after = found
        program = recorder.program((latents, after["values"]))
        before = self._known.get(key)
        if program is None:
            self._known[key] = None
        elif before is None:
            program = self._programs.setdefault(program.form, program)
            shapes = tuple((recorder.slots[n].shape, recorder.slots[n].dtype) for n in sorted(program.operands))
            template = filled(program.results[3], after["values"], lambda _: None, recorder.slots.__getitem__)
            self._known[key] = RecordedStep(program, recorder.slots, template, shapes)
        elif before.program.form == program.form and all(map(same, before.slots, recorder.slots)):
            before.proven = True
        else:
            self._known[key] = None
        return found

    def _replayed(
        self, lanes: Sequence[StepRequest], known: Sequence[RecordedStep]
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """The latents of lanes whose steps run one program, joined, and their states afterwards."""
        program, device = known[0].program, lanes[0].at.sample.device
        inputs = zip(*((lane.at.output, lane.at.sample, *_remembered(lane.state)) for lane in lanes), strict=True)
        held = {number: torch.stack(values) for number, values in enumerate(inputs)}
        program.advance(0, held, lambda number: column([one.slots[number] for one in known], device), len(lanes))
        _, _, latents, tree = program.results
        changing = leaves(tree, type(latents))
        rows = {var.number: held[var.number].unbind() for var in changing}
        # Small tensors are part of a form, so lanes have it in common only if theirs are all of the plan.
        common = all(held[var.number].ndim > 2 for var in changing)

        def held_by(row: int) -> Callable[[int], Tensor]:
            return lambda number: rows[number][row]

        found: list[dict[str, Any]] = []
        for row, (lane, one) in enumerate(zip(lanes, known, strict=True)):
            values = one.values
            if changing:
                values = filled(tree, values, held_by(row), one.slots.__getitem__)
            if common and one.after is None:
                one.after = _form(values)
            generator = None if lane.state is None else lane.state["generator"]
            found.append({"index": lane.step_index + 1, "values": values, "generator": generator})
        return held[latents.number].flatten(0, 1), found


def _remembered(state: Mapping[str, Any] | None) -> list[Tensor]:
    """The tensors in a scheduler's state: latents and predictions of a lane."""
    return [] if state is None else [value for value in tensors_in(state["values"]) if value.ndim > 1]


def _form(value: Any) -> Any:
    """A scheduler's state without the values of its latents; numbers of the plan are included."""
    if isinstance(value, Tensor):
        if value.ndim > 1:
            return (value.shape, value.dtype)
        return value.numpy().tobytes() if value.device.type == "cpu" else id(value)
    parts = entries(value)
    if parts is None:
        return value if value is None or isinstance(value, bool | int | float | str) else id(value)
    return (*value, *map(_form, parts)) if isinstance(value, Mapping) else tuple(map(_form, parts))

"""A functional interface to a pipeline's own scheduler: its plan, one step of one lane, and steps of many lanes.

A step is a function of the model's output, the latents and the scheduler's state of the lane; everything else it reads
belongs to the plan. Once that is verified on the step of a second lane, a recording is replayed for all lanes together.
Steps that draw random numbers, branch on values or enter the plan from outside are taken one by one.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from addiffusion_env.backbones.batches import OFF_PLAN
from addiffusion_env.backbones.calls.open_call import AtStep, OpenCall
from addiffusion_env.backbones.calls.recording import Program, Recorder, Var, flattened, same
from addiffusion_env.backbones.calls.stand_ins import copied, scheduler_copy, scheduler_values
from addiffusion_env.backbones.conventions import Convention, check_plan, convention_of
from addiffusion_env.errors import CapabilityError
from addiffusion_env.files import in_a_line

LEVELS_KEPT = 4096
"""Maximum number of cached level positions of a plan."""

STEPS_KEPT = 8192
"""Maximum number of recorded steps."""

LEVEL_TOLERANCE = 1e-6
"""Relative tolerance of equal levels: schedulers store theirs in single precision."""

State = Mapping[str, Any]
"""A lane's scheduler after a step: ``index`` of the next step (:data:`.OFF_PLAN` off its plan), ``values`` of its
attributes, and :func:`generator_state`."""


def generator_state(generator: torch.Generator | None) -> dict[str, Any]:
    """A generator as plain values: its state and its device, since the states of a GPU's generator are not a CPU's."""
    if generator is None:
        return {"generator": None}
    return {"generator": generator.get_state(), "device": str(generator.device)}


def equal_levels(one: float, two: float) -> bool:
    """Whether two levels are equal up to rounding."""
    return abs(one - two) <= LEVEL_TOLERANCE * max(1.0, one)


@dataclass(frozen=True, eq=False)
class SchedulerPlan:
    """The schedule set by the prologue of a pipeline's call; equal plans are one object (:meth:`Evaluator.open_call`).

    Attributes:
        scheduler: a copy of the scheduler with timesteps set; never stepped.
        convention: parametrisation of the scheduler.
        times: (m,) the denoiser's timestep at each evaluation.
        levels: (m + 1,) float64, their noise levels and the final level.
        begin: index of the first timestep in ``scheduler.timesteps``.
    """

    scheduler: Any
    convention: Convention
    times: Tensor
    levels: np.ndarray
    begin: int
    _known: dict[float, tuple[int, Any, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, call: OpenCall) -> SchedulerPlan:
        """The plan of a call that is in its loop.

        Raises:
            CapabilityError: for a scheduler whose noise levels are not known.
            ConfigError: for levels that are not decreasing.
        """
        assert call.times is not None
        scheduler = scheduler_copy(call.scheduler)
        # State that the first evaluation has set is set again by the first step.
        convention = convention_of(scheduler)
        levels = check_plan(convention.levels(scheduler, call.times, call.begin), scheduler)
        return cls(scheduler, convention, call.times, levels, call.begin)

    def at(self, sigma: float) -> tuple[int, Any, float]:
        """(index, timestep, the scheduler's own level) of the evaluation at a level."""
        found = self._known.get(sigma)
        if found is None:
            index = self._index_of(sigma)
            time = self.times[index]
            if not equal_levels(sigma, self.levels[index]):  # between the plan's own
                dtype = time.dtype if time.is_floating_point() else torch.float32
                number = self.convention.time_at(sigma, self.times, self.levels)
                time = torch.tensor(number, dtype=dtype, device=time.device)
            found = (index, time, self.convention.scheduler_sigma(sigma))
            if len(self._known) < LEVELS_KEPT:
                self._known[sigma] = found
        return found

    def _index_of(self, sigma: float) -> int:
        """Index of the plan's evaluation that a level belongs to: the last one at or above it."""
        at = int(np.searchsorted(-self.levels[:-1], -sigma * (1 - LEVEL_TOLERANCE), side="right")) - 1
        first = max(0, at)
        # The first of equal levels (second-order schedulers).
        while first > 0 and self.levels[first - 1] == self.levels[first]:
            first -= 1
        return first

    def on_plan(self, index: int, sigma: float, sigma_next: float) -> bool:
        """Whether a step leads from an evaluation of the plan to the next one."""
        return equal_levels(self._numbers[index], sigma) and equal_levels(self._numbers[index + 1], sigma_next)

    def index_of_step(self, state: State | None, sigma: float, sigma_next: float) -> int | None:
        """Index of the plan's evaluation between two levels that a lane takes next; ``None`` if it is not in the plan.

        Off its plan, a second-order scheduler enters only at the first evaluation of a step.
        """
        if state is not None and state["index"] != OFF_PLAN:
            places = range(state["index"], state["index"] + 1)
        else:
            first, order = self.at(sigma)[0], int(getattr(self.scheduler, "order", 1))
            places = range(first + -first % order, first + order)
        last = len(self.times)
        return next((at for at in places if at < last and self.on_plan(at, sigma, sigma_next)), None)

    @functools.cached_property
    def _numbers(self) -> list[float]:
        return self.levels.tolist()

    def step(self, state: State | None, index: int, at: AtStep) -> tuple[Tensor, State] | None:
        """One step of the pipeline's own scheduler.

        Args:
            state: state from the previous :meth:`step`; ``None`` or one off the plan to enter it at ``index``.
            index: index of the plan's evaluation.
            at: the arguments of the scheduler's step.

        Returns:
            (the latents, the state afterwards); ``None`` if this scheduler cannot enter its plan there.
        """
        scheduler = scheduler_copy(self.scheduler)
        if state is not None and state["index"] == index:
            scheduler.__dict__.update({name: copied(value) for name, value in state["values"].items()})
        elif (index or self.begin) and not _enters(scheduler, self.begin + index):
            warnings.warn(
                f"a {type(scheduler).__name__} cannot enter its plan in the middle: after a refinement or early exit "
                "images continue with first-order steps (solver=ddim)",
                stacklevel=3,
            )
            return None
        generator = None
        if state is not None and state["generator"] is not None:
            generator = torch.Generator(state.get("device", "cpu"))  # checkpoints of earlier versions have no device
            generator.set_state(state["generator"])
        kwargs = dict(at.kwargs)
        kind: Any = type(scheduler)
        if _takes_generator(kind):
            kwargs["generator"] = generator
        try:
            result = scheduler.step(at.output, at.time, at.sample, **kwargs)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise CapabilityError(
                f"a step of the {kind.__name__} failed: {in_a_line(error)[:200]}",
                "set pipe.scheduler to one that the pipeline and its prediction_type work with",
            ) from error
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        missing = object()
        values = {
            name: value
            for name, value in scheduler_values(scheduler).items()
            if value is not self.scheduler.__dict__.get(name, missing) and not name.startswith("_internal")
        }
        return latents, {"index": index + 1, "values": values, **generator_state(generator)}


def _enters(scheduler: Any, index: int) -> bool:
    """Sets a scheduler to a step in the middle of its plan, if it supports that."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)
        scheduler._step_index = None
        return True
    # A scheduler without a step index is either a function of its timesteps (DDIM) or counts calls (PNDM).
    return not hasattr(scheduler, "ets")


@functools.cache
def _takes_generator(kind: Any) -> bool:
    return "generator" in inspect.signature(kind.step).parameters


class StepRequest(NamedTuple):
    """One lane's step; see :meth:`SchedulerPlan.step`."""

    plan: SchedulerPlan
    state: State | None
    step_index: int
    at: AtStep


@dataclass(eq=False)
class RecordedStep:
    """A recorded step.

    Attributes:
        program: maps the model's output, the latents and the state's tensors to the next ones.
        slots: other values that it reads.
        shapes: shapes of the slots that operations read.
        proven: whether the step of another lane was equal.
        values: the state's values afterwards, where they are the same for every lane.
        form: their :func:`_form`, where that is.
    """

    program: Program
    slots: list[Any]
    shapes: tuple[Any, ...]
    proven: bool = False
    values: Any = None
    form: Any = None


class SchedulerSteps:
    """The recorded steps of one pipeline's scheduler."""

    def __init__(self) -> None:
        self._known: dict[Any, RecordedStep | None] = {}
        self._programs: dict[Any, Program] = {}
        self._forms: dict[int, tuple[Any, Any]] = {}  # (values, form) of the states after the last call, by id

    def step(self, wanted: Sequence[StepRequest]) -> tuple[Tensor | None, list[State | None]]:
        """Takes one step of each lane.

        Returns:
            (N, ...) latents of the N lanes that have a state afterwards, in their order (``None`` for no lane), and the
            states of all lanes; ``None`` for one whose scheduler cannot enter its plan.
        """
        states: list[State | None] = [None] * len(wanted)
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
        self._forms = {}
        for group in groups.values():
            rows = [row for row, _ in group]
            latents, after = self._replayed([wanted[row] for row in rows], [known for _, known in group])
            parts.append((rows, latents))
            for row, state in zip(rows, after, strict=True):
                states[row] = state
        if len(parts) < 2:
            return (parts[0][1] if parts else None), states
        order = [row for rows, _ in parts for row in rows]
        place = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat([latents for _, latents in parts])[place], states

    def _key(self, lane: StepRequest) -> Any:
        """A key that is equal for steps of one plan that read the same values; ``None`` for one never replayed."""
        plan, state, index, at = lane
        given = tuple((name, value) for name, value in at.kwargs.items() if name != "generator")
        if not all(isinstance(value, bool | int | float | str | None) for _, value in given):
            return None
        on_way = state is not None and state["index"] == index
        values = None
        if state is not None and on_way:
            kept = self._forms.get(id(state["values"]))
            values = _form(state["values"]) if kept is None else kept[1]
        return (plan, index, on_way, values, given, at.sample.shape, at.output.shape, at.sample.dtype, at.output.dtype)

    def _recorded(self, key: Any, lane: StepRequest) -> tuple[Tensor, State] | None:
        plan, state, index, at = lane
        if key is None or self._known.get(key, plan) is None or len(self._known) > STEPS_KEPT:
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
        program = recorder.program((found[0], found[1]["values"]))
        before = self._known.get(key)
        if program is None:
            self._known[key] = None
        elif before is None:
            program = self._programs.setdefault(program.form, program)
            shapes = tuple((recorder.slots[n].shape, recorder.slots[n].dtype) for n in sorted(program.operands))
            self._known[key] = RecordedStep(program, recorder.slots, shapes)
        elif before.program.form == program.form and all(map(same, before.slots, recorder.slots)):
            before.proven = True
        else:
            self._known[key] = None
        return found

    def _replayed(self, lanes: Sequence[StepRequest], known: Sequence[RecordedStep]) -> tuple[Tensor, list[State]]:
        """The latents of lanes whose steps run one program, joined, and their states afterwards."""
        program = known[0].program
        inputs = zip(*((lane.at.output, lane.at.sample, *_remembered(lane.state)) for lane in lanes), strict=True)
        held = {number: torch.stack(values) for number, values in enumerate(inputs)}
        program.advance(0, held, lambda number: [one.slots[number] for one in known], len(lanes))
        latents, *changing = (leaf.number for leaf in program.results.leaves if type(leaf) is Var)
        rows = {number: held[number].unbind() for number in (latents, *changing)}
        # Small tensors are part of a form, so lanes have it in common only if theirs are all of the plan.
        common = all(held[number].ndim > 2 for number in changing)
        found: list[State] = []
        for row, (lane, one) in enumerate(zip(lanes, known, strict=True)):
            values = one.values
            if values is None:
                own = {number: value[row] for number, value in rows.items()}
                _, values = program.results.filled(own.__getitem__, one.slots.__getitem__)
                one.values = None if changing else values
            if common:
                one.form = _form(values) if one.form is None else one.form
                self._forms[id(values)] = (values, one.form)
            before = generator_state(None) if lane.state is None else lane.state
            found.append({**before, "index": lane.step_index + 1, "values": values})
        return held[latents].flatten(0, 1), found


def _remembered(state: State | None) -> list[Tensor]:
    """The tensors in a scheduler's state: latents and predictions of a lane."""
    parts = [] if state is None else flattened(dict(state["values"]))[0]
    return [part for part in parts if isinstance(part, Tensor) and part.ndim > 1]


def _form(value: Any) -> Any:
    """A scheduler's state without the values of its latents; numbers of the plan are included."""
    if isinstance(value, Tensor):
        if value.ndim > 1:
            return (value.shape, value.dtype)
        return value.numpy().tobytes() if value.device.type == "cpu" else id(value)
    if isinstance(value, dict):
        return (*value, *map(_form, value.values()))
    if isinstance(value, list | tuple):
        return tuple(map(_form, value))
    return value if value is None or isinstance(value, bool | int | float | str) else id(value)

"""Evaluations without the pipeline's Python: its loop body is recorded once and replayed for many lanes together.

One iteration of a pipeline's loop is recorded as a :class:`recording.Program`. Lanes with the same settings (arguments
other than the prompt, guidance scale, plan) run the same program at the same step; some of the values that it reads
belong to the step (its time), others to the lane (its prompt). Which is which is determined by comparison:

- A lane is *registered* by its first recorded iteration; values that differ from another lane's belong to it. Once only
  arguments of the first network call did, the request that a new call waits with says as much, unless a value that it
  does not show may differ.
- A step is *known* from one lane's recorded iteration, which also shows the values shared with the lane's first one.
- Together they predict what any registered lane reads at that step. The prediction is used once it was verified on
  another lane's recorded iteration, for every value that belongs to the lane.

Everything else (random numbers, decisions on values, guiders with memory, values of a lane that change with the step)
runs through the pipeline's own call.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from addiffusion_env.backbones.calls.guards import autocast_state
from addiffusion_env.backbones.calls.joining import CONSTANT, LIST, Lanes, part_key
from addiffusion_env.backbones.calls.networks import Networks, holds_state
from addiffusion_env.backbones.calls.open_call import AtStep, NetworkRequest, OpenCall
from addiffusion_env.backbones.calls.recording import SMALL, Program, Slot, Var, same
from addiffusion_env.backbones.calls.requests import CallRequest, Evaluation, exact_latents
from addiffusion_env.backbones.fingerprint import LruCache

OF_A_LANE = ("prompt", "negative_prompt", "generator", "latents")
"""Name prefixes of arguments that may differ between lanes with the same settings."""

KEPT = 1024
"""Maximum number of steps of the same settings that are kept."""

SETTINGS_KEPT = 64
"""Maximum number of settings: each holds one lane's prompt, and the image of a ControlNet or an image task."""

FAILURES = 4
"""Number of failed recordings of the same settings after which no more are made."""


@dataclass(eq=False)
class Settings:
    """Knowledge shared by all lanes with the same settings.

    Attributes:
        arguments: those of the settings; some are known by their id, which is not reused while they are kept alive.
        steps: (index in the plan, noise level) -> the first recorded iteration at that step.
        own: for each program, the lane-specific slots.
        failures: number of failed recordings.
    """

    arguments: Mapping[str, Any]
    steps: LruCache[Turn] = field(default_factory=lambda: LruCache(KEPT))
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


@dataclass(eq=False)
class Turn:
    """One recorded iteration of a pipeline's loop; it is kept, so it holds nothing of the latents' size.

    Attributes:
        at: (index in the plan, noise level).
        program: the recorded program.
        slots: the values of its slots.
        time: the ``timestep`` argument of the scheduler's step.
        kwargs: its further arguments.
        keys: see :meth:`Replays._number`.
        lane: for one of :attr:`Settings.steps`, the lane; so are the following.
        steady: slots with the same value as in that lane's first recorded iteration; ``None`` if this is the first.
        proven: lane-specific slots for which another lane's iteration was predicted correctly; ``None`` before that.
        wrong: whether a prediction was incorrect.
    """

    at: tuple[int, float]
    program: Program
    slots: list[Any]
    time: Any
    kwargs: dict[str, Any]
    keys: dict[tuple[frozenset[int], bool], int] = field(default_factory=dict)
    lane: Lane | None = None
    steady: frozenset[int] | None = None
    proven: frozenset[int] | None = None
    wrong: bool = False


class Block:
    """Lanes that replay one program together; the networks receive one request of several images.

    Args:
        members: for each lane the position of its evaluation, its first recorded iteration, and that of the step.
        own: lane-specific slots.
        x: (lanes, ...) latents.
        shared: the lanes' own values in the last step, (program's id, slot) -> values: prompts that are joined already.

    Attributes:
        lanes: positions of the evaluations.
        request: the waiting network request; ``None`` at the scheduler's step.
        rows: network rows spent on each lane.
    """

    def __init__(
        self, members: Sequence[tuple[int, Turn, Turn]], own: frozenset[int], x: Tensor, shared: dict[Any, Lanes]
    ) -> None:
        self.members, self._shared = members, shared
        self.lanes = [at for at, _, _ in members]
        self.program = members[0][2].program
        self.request: NetworkRequest | None = None
        self.rows = 0
        # One lane is held as it is: networks round by the memory format of their input, which x[:, None] would change.
        self._own, self._held, self._position = own, {0: x[None] if len(members) == 1 else x[:, None]}, -1
        self._resume()

    def answer(self, value: Any) -> None:
        """Answers the request with tensors (lanes, ...)."""
        made = self.program.calls[self._position].made
        tensors = [part for part in tree_leaves(value) if isinstance(part, Tensor)]
        if len(self.lanes) == 1:
            tensors = [tensor[None] for tensor in tensors]
        self._held.update((var.number, tensor) for var, tensor in zip(made, tensors, strict=True))
        self._resume()

    def _resume(self) -> None:
        self._position += 1
        lanes = len(self.lanes)
        self.program.advance(self._position, self._held, self._values, lanes)
        self.request = None
        if self._position < len(self.program.calls):
            call = self.program.calls[self._position]
            inputs = call.inputs.filled(self._variable, self._value)
            self.request = NetworkRequest(call.site, call.module, inputs, call.form, lanes, call.processors)

    def _values(self, number: int) -> list[Any]:
        if number in self._own:
            return [lane.slots[number] for _, lane, _ in self.members]
        return [step.slots[number] for _, _, step in self.members]

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

    def found(self) -> list[AtStep]:
        """The arguments of each lane's scheduler step."""
        outputs, samples = (self._held[leaf.number].unbind() for leaf in self.program.results.leaves[:2])
        given = zip(self.members, outputs, samples, strict=True)
        return [AtStep(out, step.time, x, lane.kwargs, self.rows) for (_, lane, step), out, x in given]


class Replays:
    """The recorded iterations of one pipeline's loop.

    Args:
        pipe: the pipeline.
        networks: makes its network calls.

    Attributes:
        enabled: whether iterations are recorded; not for a user-defined ``__call__``, which may have side effects.
    """

    def __init__(self, pipe: Any, networks: Networks) -> None:
        self.pipe, self.networks = pipe, networks
        self.enabled = type(pipe).__call__.__module__.startswith("diffusers.")
        self._settings: LruCache[Settings] = LruCache(SETTINGS_KEPT)
        self._programs: dict[Any, Program | None] = {}
        self._numbers: dict[Any, int] = {}
        self._quick: set[Any] = set()
        self._shared: dict[Any, Lanes] = {}

    # Queries.

    def blocks(self, evaluations: Sequence[Evaluation]) -> tuple[list[Block], list[int]]:
        """Splits evaluations into blocks that can be replayed and the positions of those that cannot."""
        groups: dict[Any, list[tuple[int, Turn, Turn]]] = {}
        left: list[int] = []
        for at, evaluation in enumerate(evaluations):
            found = self._known(evaluation) if self.enabled else None
            if found is None:
                left.append(at)
                continue
            lane, step, own = found
            key = (id(step.program), own, self._number(lane, own), self._number(step, own, False))
            groups.setdefault(key, []).append((at, lane, step))
        made = []
        for (_, own, *_), members in groups.items():
            x = torch.cat(exact_latents([evaluations[at] for at, _, _ in members]))
            made.append(Block(members, own, x, self._shared))
        return made, left

    def wanted(self, evaluation: Evaluation) -> bool:
        """Whether to record this iteration of the pipeline's own call."""
        if not self.enabled or not self.networks.joins:
            return False
        lane = self._lane(evaluation.request, evaluation.scale)
        if lane.settings.failures >= FAILURES:
            return False
        step = lane.settings.steps.get((evaluation.index, evaluation.sigma))
        return step is None or not step.wrong

    def learn(self, evaluation: Evaluation, call: OpenCall) -> None:
        """Learns from a recorded iteration that has reached its scheduler's step."""
        lane, at = self._lane(evaluation.request, evaluation.scale), (evaluation.index, evaluation.sigma)
        settings = lane.settings
        turn = self._turn(call, at)
        if turn is None:
            settings.failures += 1
            return
        program = turn.program
        mine, step = lane.registered.get(program), settings.steps.get(at)
        if step is None:
            if mine is None:
                if program in settings.own:
                    return  # nothing to compare it with
                mine = lane.registered[program] = turn
                settings.own[program] = frozenset()
            if mine.at != at:
                pairs = enumerate(zip(turn.slots, mine.slots, strict=True))
                turn.steady = frozenset(number for number, pair in pairs if same(*pair))
            turn.lane, settings.steps[at] = lane, turn
        elif step.program is not program:
            step.wrong = True
            settings.failures += 1
        elif mine is None:
            self._register(lane, turn, step)
        elif step.steady is not None and step.lane is not lane:
            own = settings.own[program]
            predicted = ((mine if number in own else step).slots[number] for number in range(program.size))
            if own <= step.steady and all(map(same, predicted, turn.slots)):
                step.proven = own | (step.proven or frozenset())
            else:
                step.wrong = True
                settings.failures += 1

    def quick(self, request: CallRequest, scale: float | None) -> bool:
        """Whether a new call need not be recorded from its beginning."""
        return (scale, self.networks.digests(_shared(request))) in self._quick

    # Learning.

    def _register(self, lane: Lane, turn: Turn, step: Turn) -> Turn:
        """Makes a turn its lane's first; values that differ from those of another lane's ``step`` are lane-specific."""
        own, pairs = lane.settings.own[turn.program], enumerate(zip(turn.slots, step.slots, strict=True))
        differ = {number for number, pair in pairs if number not in own and not same(*pair)}
        lane.settings.own[turn.program] = own | differ
        lane.registered[turn.program] = turn
        return turn

    def _at_first_request(self, lane: Lane, evaluation: Evaluation) -> Turn | None:
        """Registers a lane by the network request that its new call waits with, if that is sufficient."""
        request, plan = evaluation.request, evaluation.request.plan
        assert plan is not None
        at = (0, plan.convention.scheduler_sigma(float(plan.levels[0])))
        step = lane.settings.steps.get(at)
        if step is None or step.wrong or step.steady is not None:
            return None
        other, program = step.lane, step.program
        assert other is not None
        own, first = lane.settings.own[program], program.calls[0]
        calls = request.waiting.get(evaluation.scale, ())
        asked = next((call.request for call in calls if call.index == 0 and call.request is not None), None)
        if asked is None or not own or not own <= program.first_slots:
            return None
        for number, value in enumerate(step.slots):
            # What the request does not show and is larger than numbers of a plan may be a lane's own: latents of an
            # image that operations read, a negative prompt in a later network call.
            large = isinstance(value, Tensor) and value.numel() > SMALL
            own_maybe = number in program.operands or lane.negative != other.negative
            if large and number not in program.first_slots and own_maybe:
                return None
        if (asked.site, asked.module, asked.form, asked.processors) != first[:4]:
            return None
        slots: dict[int, Any] = {}
        for leaf, found in zip(first.inputs.leaves, first.inputs.structure.flatten_up_to(asked.inputs), strict=True):
            if type(leaf) is Slot and slots.setdefault(leaf.number, found) is not found:
                return None
        every = [slots.get(number, value) for number, value in enumerate(step.slots)]
        self._quick.add((evaluation.scale, self.networks.digests(_shared(request))))
        return self._register(lane, Turn(at, program, every, step.time, step.kwargs), step)

    def _known(self, evaluation: Evaluation) -> tuple[Turn, Turn, frozenset[int]] | None:
        """The lane's first iteration and one at the step, which predict what it reads there; lane-specific slots."""
        lane = self._lane(evaluation.request, evaluation.scale)
        at = (evaluation.index, evaluation.sigma)
        step = lane.settings.steps.get(at)
        if step is None or step.wrong:
            return None
        mine = lane.registered.get(step.program) or self._at_first_request(lane, evaluation)
        if mine is None:
            return None
        own = lane.settings.own[step.program]
        known = mine.at == at if step.steady is None else step.proven is not None and own <= step.proven
        return (mine, step, own) if known else None

    def _lane(self, request: CallRequest, scale: float | None) -> Lane:
        lane = request.lanes.get(scale)
        if lane is None:
            arguments = _shared(request)
            key = (request.plan, scale, self.networks.digests(arguments), self._state())
            settings = self._settings.get(key)
            if settings is None:
                settings = self._settings[key] = Settings(arguments)
            negative = {name: value for name, value in request.arguments.items() if name.startswith("negative_prompt")}
            lane = request.lanes[scale] = Lane(settings, self.networks.digests(negative))
        return lane

    def _state(self) -> Any:
        """The state that a pipeline's loop may read: autocast, its plain attributes, and those of guiders."""
        public = [(name, part) for name, part in self.pipe.__dict__.items() if name[0] != "_"]
        plain = [pair for pair in public if isinstance(pair[1], bool | int | float | str)]
        guiders = [part for _, part in public if type(part).__module__.startswith("diffusers.guiders")]
        return (autocast_state(), *plain, *((id(part), str(sorted(vars(part).items(), key=str))) for part in guiders))

    def _turn(self, call: OpenCall, at: tuple[int, float]) -> Turn | None:
        recorder, event = call.recorder, call.event
        assert recorder is not None and isinstance(event, AtStep)
        program = recorder.program((event.output, event.sample, event.time))
        if program is None or event.output.shape[0] != 1:
            return None
        if program.form not in self._programs:
            replayed = self._slot_kinds(program, recorder.requests)
            replayed = replayed and all(type(leaf) is Var for leaf in program.results.leaves[:2])
            self._programs[program.form] = program if replayed else None
        known = self._programs[program.form]
        return None if known is None else Turn(at, known, recorder.slots, event.time, event.kwargs)

    def _slot_kinds(self, program: Program, requests: Sequence[NetworkRequest]) -> bool:
        """Determines what kind of network argument each slot of a program is; returns whether it can be replayed."""
        for call, request in zip(program.calls, requests, strict=True):
            site = self.networks.sites.get(request.form)
            if site is None or holds_state(request.inputs):
                return False
            for kind, part in site.inputs.parts(call.inputs.filled(Var, Slot)):
                for leaf in tree_leaves(part):
                    if type(leaf) is Slot:
                        program.kinds[leaf.number] = kind
                    elif kind == CONSTANT:
                        return False
        return program.operands.isdisjoint(program.kinds)

    def _number(self, turn: Turn, own: frozenset[int], inside: bool = True) -> int:
        """A key that is equal for iterations whose slots, inside or outside ``own``, can be joined."""
        known = turn.keys.get((own, inside))
        if known is not None:
            return known
        kinds, digests = turn.program.kinds, self.networks.digests
        parts: list[Any] = []
        for number, value in enumerate(turn.slots):
            if (number in own) is not inside:
                continue
            kind = kinds.get(number)
            if kind is None:
                parts.append((value.shape, value.dtype) if isinstance(value, Tensor) else None)
            elif kind == LIST:
                parts.append((value.ndim, value.dtype) if isinstance(value, Tensor) else digests(value))
            else:
                parts.append(part_key(kind, value, digests))
        found = self._numbers.setdefault(tuple(parts), len(self._numbers))
        turn.keys[own, inside] = found
        return found


def _shared(request: CallRequest) -> dict[str, Any]:
    """Arguments that are equal in all lanes with the same settings."""
    return {name: value for name, value in request.arguments.items() if not name.startswith(OF_A_LANE)}

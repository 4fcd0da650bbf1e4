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

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from addiffusion_env.backbones.calls.joining import CONSTANT, BatchedList, Lanes, Node, form_of, tree_key
from addiffusion_env.backbones.calls.networks import Networks, holds_state
from addiffusion_env.backbones.calls.open_call import AtStep, NetworkRequest, OpenCall
from addiffusion_env.backbones.calls.recording import SMALL, Program, Slot, Var, same
from addiffusion_env.backbones.calls.requests import CallRequest, Evaluation, same_latents, same_rows
from addiffusion_env.backbones.calls.trees import entries, with_tensors
from addiffusion_env.backbones.calls.turns import Block, KnownStep, Lane, Settings, Turn
from addiffusion_env.backbones.fingerprint import LruCache

OF_A_LANE = ("prompt", "negative_prompt", "generator", "latents")
"""Name prefixes of arguments that may differ between lanes with the same settings."""

KEPT = 1024
"""Maximum number of steps of the same settings that are kept."""

SETTINGS_KEPT = 64
"""Maximum number of settings: each holds one lane's prompt, and the image of a ControlNet or an image task."""

FAILURES = 4
"""Number of failed recordings of the same settings after which no more are made."""

OPERAND = "operand"
"""Kind of a slot that only operations read, instead of the batch layout of a network's argument."""


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
        self._kinds: dict[Program, dict[int, Any]] = {}
        self._numbers: dict[Any, int] = {}
        self._quick: set[Any] = set()
        self._shared: dict[tuple[int, int], Lanes] = {}

    # Queries.

    def blocks(self, evaluations: Sequence[Evaluation]) -> tuple[list[Block], list[int]]:
        """Splits evaluations into blocks that can be replayed and the positions of those that cannot."""
        groups: dict[Any, list[tuple[int, Turn, KnownStep]]] = {}
        left: list[int] = []
        for at, evaluation in enumerate(evaluations):
            found = self._known(evaluation) if self.enabled else None
            if found is None:
                left.append(at)
                continue
            lane, step = found
            own = step.lane.settings.own[step.turn.program]
            key = (id(step.turn.program), own, self._number(lane, own), self._number(step.turn, own, False))
            groups.setdefault(key, []).append((at, lane, step))
        made = []
        for (_, own, *_), members in groups.items():
            x = torch.cat(_latents([evaluations[at] for at, _, _ in members]))
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
        if step is not None and step.turn.program is not program:
            step.wrong = True
            settings.failures += 1
            return
        if step is None:
            if mine is None:
                if program in settings.own:
                    return  # nothing to compare it with
                mine = lane.registered[program] = turn
                settings.own[program] = frozenset()
            pairs = enumerate(zip(turn.slots, mine.slots, strict=True))
            steady = None if mine.at == at else frozenset(number for number, pair in pairs if same(*pair))
            settings.steps[at] = KnownStep(turn, lane, steady)
            while len(settings.steps) > KEPT:
                settings.steps.popitem(last=False)
            return
        if mine is None:
            self._register(lane, turn, step)
            return
        if step.steady is None or step.lane is lane:
            return
        own = settings.own[program]
        predicted = ((mine if number in own else step.turn).slots[number] for number in range(program.size))
        if own <= step.steady and all(map(same, predicted, turn.slots)):
            step.proven = own | (step.proven or frozenset())
        else:
            step.wrong = True
            settings.failures += 1

    def quick(self, request: CallRequest, scale: float | None) -> bool:
        """Whether a new call need not be recorded from its beginning."""
        return (scale, self.networks.digests(_shared(request))) in self._quick

    # Learning.

    def _register(self, lane: Lane, turn: Turn, step: KnownStep) -> Turn:
        own = lane.settings.own[turn.program]
        pairs = enumerate(zip(turn.slots, step.turn.slots, strict=True))
        lane.settings.own[turn.program] = own | {at for at, pair in pairs if at not in own and not same(*pair)}
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
        program = step.turn.program
        own, first = lane.settings.own[program], program.calls[0]
        waiting = (call for call in request.waiting.get(evaluation.scale, ()) if call.index == 0 and call.requests)
        call = next(waiting, None)
        if call is None or not own or not own <= program.first_slots:
            return None
        for number, value in enumerate(step.turn.slots):
            # What the request does not show and is larger than numbers of a plan may be a lane's own: latents of an
            # image that operations read, a negative prompt in a later network call.
            large = isinstance(value, Tensor) and value.numel() > SMALL
            own_maybe = number in program.operands or lane.negative != step.lane.negative
            if large and number not in program.first_slots and own_maybe:
                return None
        asked, like = call.requests[0], program.like[0]
        if asked.site != like.site or asked.module is not like.module or form_of(asked) != like.form:
            return None
        slots: dict[int, Any] = {}
        for tree, value in ((first.args, asked.args), (first.kwargs, asked.kwargs)):
            for leaf, found in _leaves(tree, value):
                if type(leaf) is Slot and slots.setdefault(leaf.number, found) is not found:
                    return None
        every = [slots.get(number, value) for number, value in enumerate(step.turn.slots)]
        self._quick.add((evaluation.scale, self.networks.digests(_shared(request))))
        return self._register(lane, Turn(program, every, step.turn.time, step.turn.args, step.turn.kwargs, at), step)

    def _known(self, evaluation: Evaluation) -> tuple[Turn, KnownStep] | None:
        lane = self._lane(evaluation.request, evaluation.scale)
        at = (evaluation.index, evaluation.sigma)
        step = lane.settings.steps.get(at)
        if step is None or step.wrong:
            return None
        program = step.turn.program
        mine = lane.registered.get(program) or self._at_first_request(lane, evaluation)
        if mine is None:
            return None
        if step.steady is None:
            return (mine, step) if mine.at == at else None
        own = lane.settings.own[program]
        return (mine, step) if step.proven is not None and own <= step.proven else None

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
        """The state of the pipeline that its loop may read."""
        parts = self.pipe.__dict__.items()
        plain = (bool, int, float, str)
        public = ((name, part) for name, part in parts if name[0] != "_")
        return tuple((name, part if isinstance(part, plain) else _inside(part)) for name, part in public)

    def _turn(self, call: OpenCall, at: tuple[int, float]) -> Turn | None:
        recorder, event = call.recorder, call.event
        assert recorder is not None and isinstance(event, AtStep)
        program = recorder.program((event.output, event.sample, event.time))
        if program is None or event.output.shape[0] != 1:
            return None
        if program.form not in self._programs:
            kinds = self._slot_kinds(program, recorder.requests)
            if kinds is not None and all(type(var) is Var for var in program.results[2:4]):
                self._kinds[program] = kinds
                self._programs[program.form] = program
                program.like = [template(request) for request in recorder.requests]
            else:
                self._programs[program.form] = None
        known = self._programs[program.form]
        return None if known is None else Turn(known, recorder.slots, event.time, event.args, event.kwargs, at)

    def _slot_kinds(self, program: Program, requests: Sequence[NetworkRequest]) -> dict[int, Any] | None:
        """The batch layout of the network argument of each slot; ``None`` if the calls are never joined."""
        found = dict.fromkeys(range(program.size), OPERAND)
        for call, request in zip(program.calls, requests, strict=True):
            site = self.networks.site(request)
            if site is None or holds_state(request.args) or holds_state(request.kwargs):
                return None
            for spec, tree in ((site.args, call.args), (site.kwargs, call.kwargs)):
                for leaf, kind in _leaves(tree, spec):
                    if type(leaf) is Slot:
                        found[leaf.number] = kind
                    elif kind is CONSTANT:
                        return None
        for number in program.operands:
            if found[number] is not OPERAND:
                return None
        return found

    def _number(self, turn: Turn, own: frozenset[int], inside: bool = True) -> int:
        """A key that is equal for iterations whose slots, inside or outside ``own``, can be joined."""
        known = turn.keys.get((own, inside))
        if known is not None:
            return known
        kinds, digests = self._kinds[turn.program], self.networks.digests
        parts: list[Any] = []
        for number, value in enumerate(turn.slots):
            if (number in own) is not inside:
                continue
            kind = kinds[number]
            if kind is OPERAND:
                parts.append((value.shape, value.dtype) if isinstance(value, Tensor) else None)
            elif isinstance(kind, BatchedList):
                parts.append((value.ndim, value.dtype) if isinstance(value, Tensor) else digests(value))
            else:
                parts.append(tree_key(kind, value, digests))
        found = self._numbers.setdefault(tuple(parts), len(self._numbers))
        turn.keys[own, inside] = found
        return found


def template(request: NetworkRequest) -> NetworkRequest:
    """A request of the same form without its tensors."""
    args, kwargs = with_tensors((request.args, request.kwargs), lambda _: None)
    return NetworkRequest(request.site, request.module, args, kwargs, form_of(request))


def _latents(evaluations: Sequence[Evaluation]) -> list[Tensor]:
    """The latents of evaluations; at the start of the plan those that the pipeline drew, without rounding."""
    found = [evaluation.x for evaluation in evaluations]
    first = [at for at, evaluation in enumerate(evaluations) if evaluation.index == 0 and evaluation.request.draws]
    if not first:
        return found
    last = [evaluations[at].request.draws[-1][0] for at in first]
    same = same_rows(last, [found[at] for at in first])
    for at, drawn, equal in zip(first, last, same, strict=True):
        earlier = evaluations[at].request.draws[:-1]
        found[at] = drawn if equal else next((x for x, _ in earlier if same_latents(x, found[at])), found[at])
    return found


def _shared(request: CallRequest) -> dict[str, Any]:
    """Arguments that are equal in all lanes with the same settings."""
    return {name: value for name, value in request.arguments.items() if not name.startswith(OF_A_LANE)}


def _leaves(tree: Any, beside: Any) -> Iterator[tuple[Any, Any]]:
    """(leaf, what is beside it) of a tree, and of a value or a batch layout of the same structure."""
    if type(tree) in (Var, Slot):
        yield tree, beside
        return
    parts = beside.parts if isinstance(beside, Node) else entries(beside)
    # A layout that is not a node is that of all entries.
    for part, own in zip(tree[2:], [beside] * len(tree[2:]) if parts is None else parts, strict=True):
        yield from _leaves(part, own)


def _inside(part: Any) -> Any:
    """Numeric attributes of a guider; none for other components."""
    if not type(part).__module__.startswith("diffusers.guiders"):
        return None
    return (id(part), str(sorted(vars(part).items(), key=str)))

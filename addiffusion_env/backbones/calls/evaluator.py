"""Evaluating many open calls of one pipeline together: opening, bringing to the wanted step, joining, answering."""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from addiffusion_env.backbones.calls.joining import (
    Digests,
    Form,
    Site,
    entries,
    group_key,
    joined_request,
    rebuilt,
    request_rows,
    site_of,
    split,
)
from addiffusion_env.backbones.calls.open_call import AtDecode, AtStep, Ended, Event, NetworkRequest, OpenCall
from addiffusion_env.backbones.calls.scheduler_plan import SchedulerPlan
from addiffusion_env.backbones.compiled import bucket_of
from addiffusion_env.errors import CapabilityError

TEXTS_KEPT = 1024
"""Most results of ``encode_prompt`` kept."""

DECODED_AT_ONCE = 4
"""Images that the autoencoder decodes in one call."""


class CallRequest:
    """What a pipeline is asked for one image: the arguments of its call, without noise.

    Attributes:
        arguments: keyword arguments of ``__call__``: prompt, size, number of steps ...
        plan: its scheduler's plan; ``None`` until a call was opened.
        waiting: the open calls of each guidance scale.
        draws: the noise that was drawn for it, each with the generator's state before: a call that is opened again
            draws it again.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = dict(arguments)
        self.plan: SchedulerPlan | None = None
        self.waiting: dict[float | None, list[OpenCall]] = {}
        self.draws: list[tuple[Tensor, torch.Generator]] = []
        weakref.finalize(self, _close_all, self.waiting)


def _close_all(waiting: dict[float | None, list[OpenCall]]) -> None:
    for calls in waiting.values():
        for call in calls:
            call.close()
    waiting.clear()


@dataclass(frozen=True)
class Evaluation:
    """One lane's evaluation.

    Attributes:
        request: what its image is.
        scale: guidance scale, as the pipeline's own argument; ``None`` for what the request itself says.
        index: position in the plan.
        time: what the denoiser hears.
        x: (1, ...) latents in the pipeline's layout and space.
        sigma: the level in the scheduler's own ``sigmas``.
    """

    request: CallRequest
    scale: float | None
    index: int
    time: Any
    x: Tensor
    sigma: float


@dataclass
class Evaluated:
    """The answer to an :class:`Evaluation`.

    Attributes:
        step: what the pipeline gave its scheduler.
        rows: rows of network calls spent.
        requests: the network requests of the step with their answers, where they were asked to be kept.
    """

    step: AtStep
    rows: int = 0
    requests: list[tuple[NetworkRequest, Any]] = field(default_factory=list)


@dataclass
class Evaluator:
    """Runs the open calls of one pipeline.

    Attributes:
        pipe: the pipeline; its weights are shared, itself is not changed.
        guidance_name: the argument that guidance scales are given as.
        joins: whether calls are joined.
        uneven: whether calls with different numbers of rows are joined.
        sites: what was learned of each form of network call.
        network_calls: network calls made so far, by component; a joined one counts once.
        network_rows: rows in them.
        order: position of each open call in the batch that is being evaluated, by its ``id``.
        call_network: makes a network call: (first request, args, kwargs, rows of each call, calls) -> answer; ``None``
            calls the network itself.
        buckets: numbers of rows that a call is filled up to by repeating an image of it; empty for no filling.
        compiled: what is called in a network's place, by the network's ``id``.
    """

    pipe: Any
    guidance_name: str | None = None
    joins: bool = True
    uneven: bool = True
    sites: dict[Form, Site | None] = field(default_factory=dict)
    network_calls: dict[str, int] = field(default_factory=dict)
    network_rows: dict[str, int] = field(default_factory=dict)
    order: dict[int, int] = field(default_factory=dict)
    call_network: Callable[[Any, tuple, dict, list[int], list[OpenCall]], Any] | None = None
    buckets: Sequence[int] = ()
    compiled: Mapping[int, Any] = field(default_factory=dict)
    _digests: Digests = field(default_factory=Digests)
    _texts: OrderedDict[Any, Any] = field(default_factory=OrderedDict)
    _blank: dict[Any, Any] = field(default_factory=dict)

    # Opening.

    def open(self, request: CallRequest, scale: float | None, generator: Any = None, **more: Any) -> OpenCall:
        """A new call of a request, up to its first event."""
        arguments = {**request.arguments, **more}
        if scale is not None:
            assert self.guidance_name is not None
            arguments[self.guidance_name] = scale
        if generator is not None:
            arguments["generator"] = generator
        call = OpenCall(self.pipe, arguments, self.overrides())
        event = call.begun()
        if isinstance(event, NetworkRequest):
            self._send_away(event.module)
        if isinstance(event, Ended | AtDecode):
            raise CapabilityError(
                f"a {type(self.pipe).__name__} called no denoiser between its timesteps",
                "pass a text-to-image pipeline with a denoising loop",
            )
        if request.plan is None:
            request.plan = SchedulerPlan.of(call, generator)
        return call

    @contextmanager
    def alone(self) -> Iterator[None]:
        """With ``offload=model``: within it no other component lies on the GPU, and afterwards none.

        accelerate's hooks bring a component in when it is called and send only its predecessor in the pipeline's
        order away: text encoders and autoencoder would stay beside the denoiser, which is called again after them.
        """
        self._send_away()
        try:
            yield
        finally:
            self._send_away()

    def _send_away(self, but: Any = None) -> None:
        for hook in getattr(self.pipe, "_all_hooks", ()):
            if but is None or getattr(hook, "hook", None) is not getattr(but, "_hf_hook", None):
                hook.offload()

    def overrides(self) -> dict[str, Any]:
        """Attributes of an open call's copy of the pipeline: its ``encode_prompt``, which remembers what it said."""
        encode = getattr(self.pipe, "encode_prompt", None)
        return {} if encode is None else {"encode_prompt": self._cached(encode)}

    def _cached(self, encode: Any) -> Any:
        @functools.wraps(encode)
        def encoded(*args: Any, **kwargs: Any) -> Any:
            key = (encoder_state(self.pipe), self._digests((args, kwargs)))
            if key in self._texts:
                self._texts.move_to_end(key)
                return self._texts[key][0]
            with self.alone():
                found = encode(*args, **kwargs)
            # The arguments stay alive with their result: some are known by their id.
            self._texts[key] = (found, args, kwargs)
            while len(self._texts) > TEXTS_KEPT:
                self._texts.popitem(last=False)
            return found

        return encoded

    def drawn(self, request: CallRequest, scale: float | None, generator: Any) -> tuple[Tensor, Any]:
        """The latents that the pipeline itself would begin with, and the generator's state afterwards.

        Returns:
            ((1, ...) latents in the pipeline's layout, the generator's state or ``None``).
        """
        before = generator.clone_state() if isinstance(generator, torch.Generator) else None
        call = self.open(request, scale, generator)
        state = generator.get_state() if isinstance(generator, torch.Generator) else None
        x = self._blank_step(call, call.event).sample if call.drawn is None else call.drawn
        self._keep(request, scale, call)
        if before is not None:
            request.draws.append((x, before))
        return x, state

    # Evaluating.

    def evaluate(self, evaluations: Sequence[Evaluation], keep: bool = False) -> list[Evaluated]:
        """Answers evaluations, their network calls joined where that is known to change nothing."""
        calls = [self._brought(evaluation) for evaluation in evaluations]
        self.order = {id(call): at for at, call in enumerate(calls)}
        found = self._run(calls, keep)
        self.order = {}
        for evaluation, call in zip(evaluations, calls, strict=True):
            self._keep(evaluation.request, evaluation.scale, call)
        return found

    def _run(self, calls: Sequence[OpenCall], keep: bool = False) -> list[Evaluated]:
        rows = [0] * len(calls)
        kept: list[list[tuple[NetworkRequest, Any]]] = [[] for _ in calls]
        while waiting := [at for at, call in enumerate(calls) if isinstance(call.event, NetworkRequest)]:
            for group in self._groups(calls, waiting):
                answers, counts = self._network([calls[at] for at in group])
                for at, answer, count in zip(group, answers, counts, strict=True):
                    rows[at] += count
                    if keep:
                        kept[at].append((calls[at].event, answer))  # type: ignore[arg-type]
                    calls[at].answer(answer)
        found = []
        for call, count, requests in zip(calls, rows, kept, strict=True):
            if not isinstance(call.event, AtStep):
                raise CapabilityError(
                    f"a {type(self.pipe).__name__} left its loop before its scheduler's step", "it cannot be driven"
                )
            found.append(Evaluated(call.event, count, requests))
        return found

    def _brought(self, evaluation: Evaluation) -> OpenCall:
        """A call of the evaluation's request that has its network request for the wanted latents and time."""
        request, index = evaluation.request, evaluation.index
        call = self._taken(request, evaluation.scale, index, evaluation.x)
        if call is None:
            call = self._reopened(request, evaluation)
            if index == 0 and call.drawn is not None and _same(call.drawn, evaluation.x):
                return call  # its first network request is about these very latents
        elif index == 0 and call.index == 0 and not isinstance(call.event, AtStep):
            return call
        if not isinstance(call.event, AtStep):
            self._blank_step(call, call.event)
        assert call.times is not None and isinstance(call.event, AtStep)
        while call.index < index - 1:
            self._blank_step(call, call.go_on(call.event.sample, call.times[call.index + 1]))
        place_level(call, call.index + 1, evaluation)
        call.go_on(evaluation.x, evaluation.time)
        return call

    def _taken(self, request: CallRequest, scale: float | None, index: int, x: Tensor) -> OpenCall | None:
        """The waiting call that is nearest before ``index``; at the first one that waits with these very latents."""
        here = threading.get_ident()
        waiting = request.waiting.get(scale, [])
        if any(call.thread != here for call in waiting):
            waiting[:] = [call for call in waiting if call.thread == here]
        best = None
        for at, call in enumerate(waiting):
            if index == 0:
                fresh = not isinstance(call.event, AtStep) and call.drawn is not None and _same(call.drawn, x)
                if fresh:
                    best = at
                    break
            elif call.index < index and (best is None or call.index > waiting[best].index):
                # One that waits with its first request may be brought on by blank answers.
                best = at
        return None if best is None else waiting.pop(best)

    def _reopened(self, request: CallRequest, evaluation: Evaluation) -> OpenCall:
        """A new call; at the first step with the given latents as its own, where the pipeline takes them."""
        generator = torch.Generator().manual_seed(0)
        for x, before in request.draws if evaluation.index == 0 else ():
            if _same(x, evaluation.x):
                return self.open(request, evaluation.scale, before.clone_state())
        if evaluation.index == 0 and "latents" in self.parameters and "latents" not in request.arguments:
            factor = float(getattr(self.pipe.scheduler, "init_noise_sigma", 1.0))
            if request.plan is not None:
                factor = float(getattr(request.plan.scheduler, "init_noise_sigma", 1.0))
            try:
                return self.open(request, evaluation.scale, generator, latents=evaluation.x / factor)
            except (ValueError, TypeError):
                pass  # it wants them in a form of its own
        return self.open(request, evaluation.scale, generator)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The parameters of the pipeline's ``__call__``."""
        return inspect.signature(type(self.pipe).__call__).parameters

    def _keep(self, request: CallRequest, scale: float | None, call: OpenCall) -> None:
        request.waiting.setdefault(scale, []).append(call)

    def _blank_step(self, call: OpenCall, event: Event | None) -> AtStep:
        """Brings a call to its scheduler's step with empty answers, which cost nothing."""
        while isinstance(event, NetworkRequest):
            event = call.answer(self._blank_answer(event))
        assert isinstance(event, AtStep)
        return event

    def _blank_answer(self, request: NetworkRequest) -> Any:
        if holds_state(request.args) or holds_state(request.kwargs):
            # A cache of keys and values is filled by the call itself.
            with torch.no_grad():
                return request.module(*request.args, **request.kwargs)
        kind = _blank_key(request)
        if kind not in self._blank:
            with torch.no_grad():
                self._blank[kind] = _zeros(request.module(*request.args, **request.kwargs))
        return self._blank[kind]

    # Images.

    def finish(self, ends: Sequence[tuple[CallRequest, Tensor]]) -> list[Any]:
        """What the pipeline returns for some last latents, (1, ...) each in its own layout; decoded together."""
        calls = []
        precisions = {
            part: part.dtype for part in vars(self.pipe).values() if hasattr(part, "decode") and hasattr(part, "dtype")
        }
        try:
            for request, x in ends:
                call = self._ending(request)
                call.finish(x)
                calls.append(call)
                if isinstance(call.event, AtDecode) and call.event.module.dtype != precisions[call.event.module]:
                    # The pipeline moves its autoencoder to float32 and back around each decode.
                    self._decode([call])
            self._decode([call for call in calls if isinstance(call.event, AtDecode)])
        finally:
            for part, dtype in precisions.items():
                if part.dtype != dtype:
                    part.to(dtype=dtype)
        found = []
        for call in calls:
            assert isinstance(call.event, Ended)
            found.append(call.event.output)
        return found

    def _ending(self, request: CallRequest) -> OpenCall:
        """A call of a request that waits at its scheduler's step; it will be used up."""
        here = threading.get_ident()
        for waiting in request.waiting.values():
            for at, call in enumerate(waiting):
                if call.thread == here:
                    waiting.pop(at)
                    if not isinstance(call.event, AtStep):
                        self._blank_step(call, call.event)
                    return call
        call = self.open(request, None, torch.Generator().manual_seed(0))
        self._blank_step(call, call.event)
        return call

    def _decode(self, calls: Sequence[OpenCall]) -> None:
        groups: dict[Any, list[OpenCall]] = {}
        for call in calls:
            event = call.event
            assert isinstance(event, AtDecode)
            key = (
                id(event.module),
                event.latents.shape,
                event.latents.dtype,
                self._digests((event.args, event.kwargs)),
            )
            groups.setdefault(key, []).append(call)
        for group in groups.values():
            for start in range(0, len(group), DECODED_AT_ONCE):
                part = group[start : start + DECODED_AT_ONCE]
                events: list[AtDecode] = [call.event for call in part]  # type: ignore[misc]
                first = events[0]
                with torch.no_grad(), self.alone():
                    latents = torch.cat([event.latents for event in events]) if len(part) > 1 else first.latents
                    answer = first.module.decode(latents, *first.args, **first.kwargs)
                for row, call in enumerate(part):
                    call.answer(answer if len(part) == 1 else _row(answer, row))

    # Networks.

    def _groups(self, calls: Sequence[OpenCall], waiting: Sequence[int]) -> list[list[int]]:
        if not self.joins or len(waiting) == 1:
            return [[at] for at in waiting]
        groups: dict[Any, list[int]] = {}
        for at in waiting:
            request = calls[at].event
            assert isinstance(request, NetworkRequest)
            key = group_key(self.site(request), calls[at], request, self._digests, self.uneven)
            groups.setdefault(key, []).append(at)
        return list(groups.values())

    def site(self, request: NetworkRequest) -> Site | None:
        """What is known of a form of network call; ``None`` for one that is not joined."""
        return self.sites.get(Form.of(request))

    def _network(self, calls: list[OpenCall]) -> tuple[list[Any], list[int]]:
        """One network call for some open calls: the answer and the number of rows of each."""
        requests: list[NetworkRequest] = [call.event for call in calls]  # type: ignore[misc]
        first = requests[0]
        site = self.site(first)
        counts = [(request_rows(site, request) if site else None) or leading_rows(request) for request in requests]
        # Filled up with further images, not rows: networks may take their batch apart by branches.
        more = self._filling(counts) if site is not None and self.joins else 0
        least = counts.index(min(counts))
        asked, rows = [*requests, *[requests[least]] * more], [*counts, *[counts[least]] * more]
        if site is None or (len(asked) == 1 and not self.compiled):
            args, kwargs = first.args, first.kwargs
        else:
            args, kwargs = joined_request(site, asked, rows, bool(self.compiled))
        name = first.site[0]
        self.network_calls[name] = self.network_calls.get(name, 0) + 1
        self.network_rows[name] = self.network_rows.get(name, 0) + sum(rows)
        with torch.no_grad():
            if self.call_network is None:
                answer = first.module(*args, **kwargs)
            else:
                answer = self.call_network(first, args, kwargs, rows, calls)
        answers = [answer] if site is None or len(asked) == 1 else split(site.output, answer, rows)[: len(requests)]
        if (kind := _blank_key(first)) not in self._blank:
            self._blank[kind] = _zeros(answers[0])
        return answers, counts

    def _filling(self, counts: Sequence[int]) -> int:
        """How many images a call of so many rows each is filled up with."""
        missing = bucket_of(sum(counts), self.buckets) - sum(counts)
        return -(-missing // min(counts))

    # Learning.

    def learn(self, one: Sequence[tuple[NetworkRequest, Any]], two: Sequence[tuple[NetworkRequest, Any]]) -> None:
        """Learns which axes count images from a step for one image and the same step for two."""
        if [r.site for r, _ in one] != [r.site for r, _ in two]:
            return
        for first, second in zip(one, two, strict=True):
            try:
                self.sites[Form.of(first[0])] = site_of(first, second)
            except ValueError:
                self.sites[Form.of(first[0])] = None


def place_level(call: OpenCall, index: int, evaluation: Evaluation) -> None:
    """Makes the call's scheduler believe that it is at a level, for what it scales and what the loop looks up."""
    scheduler = call.scheduler
    at = call.begin + index
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, Tensor) and at < len(sigmas) and float(sigmas[at]) != evaluation.sigma:
        if not call.own_sigmas:
            scheduler.sigmas = sigmas = sigmas.clone()
            call.own_sigmas = True
        sigmas[at] = evaluation.sigma
    if hasattr(scheduler, "_step_index"):
        scheduler._step_index = at


def _row(value: Any, row: int) -> Any:
    """One image of a decoder's answer."""
    if isinstance(value, Tensor):
        return value[row : row + 1]
    parts = entries(value)
    return value if parts is None else rebuilt(value, [_row(part, row) for part in parts])


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two latents are the same, up to the rounding of a change of scale and back."""
    if a.shape != b.shape:
        return False
    rounding = 1e-5 if a.dtype in (torch.float32, torch.float64) else 1e-2
    return bool((a.float() - b.float()).abs().max() <= rounding * a.float().abs().max())


def _zeros(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    parts = entries(value)
    return value if parts is None else rebuilt(value, [_zeros(part) for part in parts])


def _blank_key(request: NetworkRequest) -> Any:
    """Requests with equal keys have answers of one shape."""
    values = (*request.args, *request.kwargs.values())
    first = next((v for v in values if isinstance(v, Tensor) and v.ndim > 1), None)
    if first is None:
        first = next((v[0] for v in values if isinstance(v, list) and v and isinstance(v[0], Tensor)), None)
    return (Form.of(request), leading_rows(request), None if first is None else first.shape)


def holds_state(value: Any) -> bool:
    """Whether arguments hold an object that is neither a tensor nor plain: a cache that a call fills."""
    inside = entries(value)
    if inside is not None:
        return any(holds_state(entry) for entry in inside)
    plain = Tensor | bool | int | float | str | bytes | torch.dtype | torch.device | torch.Generator | torch.Size
    return value is not None and not isinstance(value, plain)


def leading_rows(request: NetworkRequest) -> int:
    """Rows of a request of which nothing was learned: the length of its first tensor or list."""
    for value in (*request.args, *request.kwargs.values()):
        if isinstance(value, Tensor) and value.ndim > 1:
            return len(value)
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return len(value)
    return 1


def encoder_state(pipe: Any) -> Any:
    """Changes when a text encoder's weights, adapters or tokens do: what encoded prompts depend on."""
    found = []
    for name, part in pipe.__dict__.items():
        if name.startswith("text_encoder") and isinstance(part, torch.nn.Module):
            found.append((id(part), sum((p._version + 1) * (p.data_ptr() % 1000003 + 7) for p in part.parameters())))
            scales = [tuple(m.scaling.items()) for m in part.modules() if isinstance(getattr(m, "scaling", None), dict)]
            found.append(tuple(scales))
        elif name.startswith("tokenizer") and hasattr(part, "__len__"):
            found.append((id(part), len(part)))
    return tuple(found)


def warn_not_joined(pipe: Any, reason: str) -> None:
    """Says that calls are not joined, and what that costs."""
    warnings.warn(
        f"network calls of a {type(pipe).__name__} are not joined: {reason}\n  -> images are made one call each: the "
        "same images, as slow as one after the other",
        UserWarning,
        stacklevel=4,
    )

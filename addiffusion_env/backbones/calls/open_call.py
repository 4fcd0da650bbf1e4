"""One call of a pipeline's ``__call__`` that is suspended between its denoising steps.

The call runs in a greenlet on a copy of the pipeline whose denoisers, scheduler and decoder are stand-ins: instances of
subclasses that share the real parts' ``__dict__``, so that ``isinstance``, attributes and signatures are the real ones.
A stand-in hands control back: a denoiser with its arguments (:class:`NetworkRequest`), the scheduler with the arguments
of ``scheduler.step`` (:class:`AtStep`), the decoder with its latents (:class:`AtDecode`). A call that waits at ``step``
can be resumed with *any* latents, and the ``timesteps`` that its loop iterates over yield *any* next time, so it
represents the prompt and the settings only, not the state of one image.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from addiffusion_env.backbones.calls.guards import Processors, TorchState, set_processors
from addiffusion_env.backbones.calls.recording import Recorder
from addiffusion_env.backbones.calls.stand_ins import (
    LazyTimesteps,
    StepOutput,
    is_scheduler,
    module_stand_in,
    pipeline_class,
    scheduler_stand_in,
)
from addiffusion_env.errors import CapabilityError

NOT_DENOISERS = ("text_encoder", "image_encoder", "safety_checker", "feature_extractor", "tokenizer", "vision")
"""Name prefixes of components that are never called inside the denoising loop."""


Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a network."""


@dataclass(slots=True, eq=False)
class NetworkRequest:
    """A denoiser call that waits for its output.

    Attributes:
        site: (component's name, number of earlier calls of it in this step).
        module: the real network.
        inputs: its arguments; if there are several lanes, values that differ are :class:`joining.Lanes`.
        form: structure of the call: see :func:`form_of`.
        lanes: number of images.
        processors: the attention processors that its call has set.
        key: equal for requests that can share one call, where that is known (:meth:`networks.Networks.key`).
    """

    site: tuple[str, int]
    module: nn.Module
    inputs: Inputs
    form: tuple
    lanes: int = 1
    processors: Processors = ()
    key: Any = None


def form_of(value: Any) -> Any:
    """Structure of arguments: names, containers and numbers of dimensions, without sizes."""
    if isinstance(value, Tensor):
        return value.ndim
    if isinstance(value, Mapping):
        return (type(value).__name__, *value, *map(form_of, value.values()))
    if isinstance(value, list | tuple):
        # The length of a list may be the number of images.
        return (type(value).__name__, *dict.fromkeys(map(form_of, value)))
    return value is None


@dataclass(slots=True, eq=False)
class AtStep:
    """The call has its guided prediction and asks its scheduler for the next latents.

    Attributes:
        output: the scheduler's ``model_output`` argument.
        time: its ``timestep`` argument.
        sample: the evaluated latents, in the pipeline's own layout.
        kwargs: further arguments of ``step``, by name.
        rows: network rows that were spent on it.
    """

    output: Tensor
    time: Any
    sample: Tensor
    kwargs: dict[str, Any]
    rows: int = 0


@dataclass(frozen=True)
class AtDecode:
    """The loop has ended and the pipeline decodes: the real autoencoder, the latents, and further arguments."""

    module: Any
    latents: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class CallEnd:
    """The call has returned ``output``."""

    output: Any


Event = NetworkRequest | AtStep | AtDecode | CallEnd


class OpenCall:
    """A suspended pipeline call; see the module's docstring.

    Args:
        pipe: the pipeline; it is not changed.
        arguments: keyword arguments of its ``__call__``.
        overrides: attributes of the copy, for example a cached ``encode_prompt``.
        layers: the attention layers whose processors it may replace; they are put back when it is suspended.

    Attributes:
        arguments: see above.
        index: index of the current step in the plan; -1 before the loop.
        event: the event that it waits for.
        scheduler: its own copy of the pipeline's scheduler.
        times: (m,) timesteps of an unmodified run's loop; ``None`` before the loop.
        begin: index of the first of them in ``scheduler.timesteps`` (above 0 for image-to-image).
        drawn: the latents that the pipeline prepared, in its own layout; ``None`` if it has no ``prepare_latents``.
        rows: network rows spent since it was opened or resumed.
        processors: the attention processors that it has set before its loop.
        recorder: records the call's operations up to its scheduler's step; ``None`` for a call that is not recorded.
    """

    def __init__(
        self,
        pipe: Any,
        arguments: Mapping[str, Any],
        overrides: Mapping[str, Any] | None = None,
        layers: Sequence[Any] = (),
    ) -> None:
        self.arguments, self.index = arguments, -1
        self.event: Event | None = None
        self.times: Tensor | None = None
        self.begin = 0
        self.drawn: Tensor | None = None
        self.rows = 0
        self.processors: Processors = ()
        self.denoises = False
        self.recorder: Recorder | None = None
        self.thread = threading.get_ident()
        self._state = TorchState()
        self._next: Any = None
        self._ending = False
        self._made: dict[str, int] = {}
        self._walked: Any = None
        self._layers = layers
        self._before: list[tuple[Any, Any]] = []
        own = self._copy(pipe)
        for name, value in (overrides or {}).items():
            own.__dict__[name] = value
        self._greenlet = greenlet(lambda _: type(pipe).__call__(own, **arguments))

    def start(self) -> Event:
        """Runs the call up to its first event."""
        self._before = [(layer, layer.processor) for layer in self._layers]
        try:
            return self._switch(None)
        finally:
            set_processors([pair for pair in self._before if pair[0].processor is not pair[1]])
            self._before = []

    @property
    def request(self) -> NetworkRequest | None:
        """The network request that waits for its output."""
        return self.event if isinstance(self.event, NetworkRequest) else None

    def answer(self, value: Any) -> Event:
        """Answers a network or decoder request."""
        if self.recorder is not None:
            self.recorder.answered(value)
        return self._switch(value)

    def resume(self, latents: Tensor, time: Any, sigma: float | None = None, recorder: Recorder | None = None) -> Event:
        """Resumes a call that waits at ``step``.

        Args:
            latents: the step's result.
            time: the next timestep.
            sigma: the next level, for a scheduler that scales its input by it; ``None`` for that of its plan.
            recorder: records the call up to the next step.
        """
        assert isinstance(self.event, AtStep)
        self.index += 1
        self._next, self.rows = time, 0
        self._made.clear()
        if self._walked is not None:  # for pipelines that look the time up by index
            self._walked.changed[self.index] = time
        if sigma is not None:
            self._set_level(self.begin + self.index, sigma)
        latents = latents.to(self.event.sample.dtype)
        self.recorder = recorder
        if recorder is not None:
            recorder.mark(latents)
        return self._switch(self._stepped(latents))

    def _set_level(self, at: int, sigma: float) -> None:
        scheduler = self.scheduler
        sigmas = getattr(scheduler, "sigmas", None)
        if isinstance(sigmas, Tensor) and at < len(sigmas) and float(sigmas[at]) != sigma:
            scheduler.sigmas = sigmas.clone()  # the plan shares them
            scheduler.sigmas[at] = sigma
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = at

    def finish(self, latents: Tensor) -> Event:
        """Resumes a call that waits at ``step`` with final latents, which end the loop; the pipeline decodes them."""
        assert isinstance(self.event, AtStep)
        self._ending, self.recorder = True, None
        return self._switch(self._stepped(latents))

    def close(self) -> None:
        """Aborts the call; its ``finally`` blocks run."""
        if self._greenlet.dead or self.thread != threading.get_ident():
            return
        self._greenlet.parent = getcurrent()
        self._state.enter()
        try:
            self._greenlet.throw(GreenletExit)
        finally:
            self._state.leave()

    def _switch(self, value: Any) -> Event:
        self._greenlet.parent = getcurrent()
        self._state.enter()
        if self.recorder is not None and self.recorder.marked:
            self.recorder.start()
        try:
            found = self._greenlet.switch(value)
        finally:
            if self.recorder is not None:
                self.recorder.stop()
            self._state.leave()
        self.event = CallEnd(found) if self._greenlet.dead else found
        return self.event  # type: ignore[return-value]

    def _wait(self, event: Event) -> Any:
        """Suspends the call, from inside it."""
        parent = getcurrent().parent
        assert parent is not None
        return parent.switch(event)

    def _stepped(self, latents: Tensor) -> Any:
        """The result of ``scheduler.step``, in the form that the pipeline requested."""
        event = self.event
        assert isinstance(event, AtStep)
        latents = latents.to(event.sample.dtype)
        if event.kwargs.get("return_dict", True):
            return StepOutput(prev_sample=latents, pred_original_sample=latents, denoised=latents)
        # A pipeline that decodes the second output (Sana-Sprint's denoised) is at its end, where both are equal.
        return (latents, latents)

    # Called by the stand-ins, inside the greenlet.

    def on_network(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A component was called."""
        if not self.denoises:
            return module(*args, **kwargs)
        if self._before:
            replaced = (layer for layer, own in self._before if layer.processor is not own)
            self.processors = tuple((layer, layer.processor) for layer in replaced)
        count = self._made.get(name, 0)
        self._made[name] = count + 1
        inputs = (args, kwargs)
        form = (name, form_of(args), form_of(kwargs), kwargs.get("return_dict"))
        request = NetworkRequest((name, count), module, inputs, form, processors=self.processors)
        if self.recorder is not None:
            self.recorder.asked(request)
        return self._wait(request)

    def on_step(self, output: Tensor, time: Any, sample: Tensor, kwargs: dict[str, Any]) -> Any:
        """``scheduler.step`` was called."""
        if self.times is None:
            raise CapabilityError(
                "the pipeline's loop does not iterate over its scheduler's timesteps",
                "it cannot be driven step by step; use another pipeline",
            )
        return self._wait(AtStep(output, time, sample, kwargs))

    def on_decode(self, module: Any, latents: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The decoder was called: inside the loop it runs at once."""
        if self.denoises or not self._ending:
            return module.decode(latents, *args, **kwargs)
        return self._wait(AtDecode(module, latents, args, kwargs))

    def on_next(self, walked: LazyTimesteps) -> Any:
        """The loop requests its next timestep; ``None`` ends it."""
        if self._ending:
            self.denoises = False
            return None
        if self.index < 0:
            self._walked, self.begin = walked, walked.offset
            self.times = walked.plain()
            self.index, self.denoises = 0, True
            return self.times[0]
        return self._next

    def only_reads(self) -> bool:
        """Whether the iteration that has just begun is not the loop: it goes on without a denoiser or a step.

        SDXL counts the timesteps before ``denoising_end`` so.
        """
        if self.event is not None:
            return False
        self.index, self.denoises, self.times = -1, False, None
        return True

    def length(self, walked: LazyTimesteps) -> int:
        """The number of timesteps of the loop; after the last step, the number of steps taken."""
        return self.index + 1 if self._ending else walked.shape[0]

    def _copy(self, pipe: Any) -> Any:
        own = copy.copy(pipe)
        kind: Any = type(pipe)  # mypy takes type[Any] for unhashable, and pipeline_class is cached
        own.__class__ = pipeline_class(kind)
        parts = own.__dict__
        for name, part in list(parts.items()):
            if isinstance(part, nn.Module):
                if not name.startswith(NOT_DENOISERS):
                    parts[name] = module_stand_in(part, name, self)
            elif is_scheduler(part):
                parts[name] = scheduler_stand_in(part, self)
                if name == "scheduler":
                    self.scheduler = parts[name]
            elif type(part).__module__.startswith("diffusers.guiders"):
                parts[name] = copy.deepcopy(part)
            elif isinstance(part, list | dict):
                parts[name] = copy.copy(part)
        parts["_progress_bar_config"] = {"disable": True}
        # The real method would move weights that other open calls use.
        parts["maybe_free_model_hooks"] = lambda: None
        if hasattr(pipe, "prepare_latents"):
            parts["prepare_latents"] = self._recorded(own.prepare_latents)
        return own

    def _recorded(self, prepare: Any) -> Any:
        @functools.wraps(prepare)
        def prepared(*args: Any, **kwargs: Any) -> Any:
            made = prepare(*args, **kwargs)
            self.drawn = made[0] if isinstance(made, tuple) else made
            if self.recorder is not None:
                self.recorder.mark(self.drawn)
                self.recorder.start()
            return made

        return prepared

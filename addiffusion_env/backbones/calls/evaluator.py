"""Evaluates many open calls of one pipeline together: opens them, advances them, answers requests, finishes images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from addiffusion_env.backbones.calls.arguments import PipelineArguments
from addiffusion_env.backbones.calls.guards import (
    attention_layers,
    forked_rng,
    kept_precision,
    pipeline_errors,
    precision_of,
)
from addiffusion_env.backbones.calls.networks import Networks
from addiffusion_env.backbones.calls.open_call import AtDecode, AtStep, CallEnd, NetworkRequest, OpenCall
from addiffusion_env.backbones.calls.recording import Recorder
from addiffusion_env.backbones.calls.replays import Block, Replays
from addiffusion_env.backbones.calls.requests import CallRequest, Evaluation, same_latents
from addiffusion_env.backbones.calls.scheduler import SchedulerPlan, equal_levels, generator_state
from addiffusion_env.backbones.calls.stand_ins import scheduler_values
from addiffusion_env.backbones.calls.text_cache import TextCache, adapters_of
from addiffusion_env.backbones.fingerprint import LruCache
from addiffusion_env.backbones.memory import alone, send_away
from addiffusion_env.errors import CapabilityError, ConfigError

PLANS_KEPT = 64
"""Maximum number of cached plans."""

DECODED_AT_ONCE = 4
"""Maximum number of images that the autoencoder decodes in one call."""


class Evaluator:
    """Runs the open calls of one pipeline.

    Args:
        arguments: the pipeline and the arguments of its call; its weights are shared and it is not modified.

    Attributes:
        networks: makes the network calls.
        texts: cache of encoded prompts.
    """

    def __init__(self, arguments: PipelineArguments) -> None:
        self.arguments, self.pipe = arguments, arguments.pipe
        self.networks = Networks()
        self.texts = TextCache(self.pipe, self.networks.digests)
        self.replays = Replays(self.pipe, self.networks)
        self._layers = attention_layers(self.pipe)
        self._placed: tuple[Any, Any] | None = None
        self._plans: LruCache[SchedulerPlan] = LruCache(PLANS_KEPT)

    # Opening.

    def open_call(
        self,
        request: CallRequest,
        scale: float | None,
        generator: Any = None,
        recorder: Recorder | None = None,
        **more: Any,
    ) -> OpenCall:
        """Opens a new call of a request and runs it up to its first event."""
        arguments = {**request.arguments, **more}
        if scale is not None:
            assert self.arguments.guidance_name is not None
            arguments[self.arguments.guidance_name] = scale
        if generator is not None:
            arguments["generator"] = generator
        self._check_adapters(request)
        call = OpenCall(self.pipe, arguments, {**self.texts.overrides(), "_device": self._device()}, self._layers)
        call.recorder = recorder
        rng_state = request.rng_state
        with pipeline_errors(self.pipe, "the beginning of a call", arguments), forked_rng(rng_state):
            event = call.start()
        if isinstance(event, NetworkRequest):
            send_away(self.pipe, event.module)
        if isinstance(event, CallEnd | AtDecode):
            raise CapabilityError(
                f"a {type(self.pipe).__name__} called no denoiser between its timesteps",
                "pass a text-to-image pipeline with a denoising loop; of a two-stage model pass the second stage, with "
                "the outputs of the first as arguments",
            )
        if request.plan is None:
            request.plan = self._plan_of(call)
        return call

    def _plan_of(self, call: OpenCall) -> SchedulerPlan:
        """The plan of a call that is in its loop; see :meth:`SchedulerPlan.of`."""
        scheduler, digests = call.scheduler, self.networks.digests
        key = (type(scheduler), call.begin, digests(call.times), digests(scheduler_values(scheduler)))
        known = self._plans.get(key)
        if known is None:
            known = self._plans[key] = SchedulerPlan.of(call)
        return known

    def _device(self) -> Any:
        """Execution device of the pipeline, cached because it searches all modules for hooks."""
        modules = (part for part in vars(self.pipe).values() if isinstance(part, torch.nn.Module))
        places = tuple(getattr(next(module.parameters(), None), "device", None) for module in modules)
        if self._placed is None or self._placed[0] != places:
            self._placed = (places, getattr(self.pipe, "_execution_device", None))
        return self._placed[1]

    def _check_adapters(self, request: CallRequest) -> None:
        """Refuses to continue an image if the pipeline's adapters have changed since it was started.

        Raises:
            ConfigError: when they have changed.
        """
        now = adapters_of(self.pipe)
        if request.adapters is None:
            request.adapters = now
        if request.adapters != now:
            raise ConfigError(
                f"adapters of the {type(self.pipe).__name__} (LoRA) were loaded, fused or given other weights while an "
                "image was being generated",
                "change them between two calls, or restart the image",
            )

    def drawn(self, request: CallRequest, scale: float | None, generator: Any) -> tuple[Tensor, dict[str, Any]]:
        """The initial latents of the pipeline itself, and the generator afterwards.

        Returns:
            ((1, ...) latents in the pipeline's layout, :func:`.scheduler.generator_state`).
        """
        before = generator.clone_state() if isinstance(generator, torch.Generator) else None
        request.noise = request.noise or before
        recorder = None if self.replays.quick(request, scale) else self._recorder()
        call = self.open_call(request, scale, generator, recorder)
        state = generator_state(generator if isinstance(generator, torch.Generator) else None)
        if call.drawn is None:
            self.blank_step(call)
        x = call.event.sample if isinstance(call.event, AtStep) else call.drawn
        assert x is not None
        request.calls(scale).append(call)
        if before is not None:
            request.draws.append((x, before))
        return x, state

    # Evaluating.

    def evaluate(self, evaluations: Sequence[Evaluation]) -> list[AtStep]:
        """Runs evaluations, with network calls joined where that is known not to change the results.

        Raises:
            ConfigError: when a network or the pipeline refuses what it is given.
            CapabilityError: when one of them fails otherwise.
        """
        with pipeline_errors(self.pipe, "an evaluation", evaluations[0].request.arguments):
            return self._evaluated(evaluations)

    def _evaluated(self, evaluations: Sequence[Evaluation]) -> list[AtStep]:
        adapters = adapters_of(self.pipe)
        for evaluation in evaluations:
            if evaluation.request.adapters != adapters:
                self._check_adapters(evaluation.request)
        blocks, left = self.replays.blocks(evaluations)
        calls = [self._brought(evaluations[at]) for at in left]
        self._answer([*zip(calls, ([at] for at in left), strict=True), *((block, block.lanes) for block in blocks)])
        found: dict[int, AtStep] = {}
        for at, call in zip(left, calls, strict=True):
            evaluation = evaluations[at]
            found[at] = self._at_step(call)
            if call.recorder is not None:
                self.replays.learn(evaluation, call)
                call.recorder = None
            evaluation.request.calls(evaluation.scale).append(call)
        for block in blocks:
            found.update(zip(block.lanes, block.found(), strict=True))
        return [found[at] for at in range(len(evaluations))]

    def _answer(self, owners: Sequence[tuple[OpenCall | Block, list[int]]]) -> None:
        """Answers network requests together until there are no more.

        Args:
            owners: open calls or blocks that issue the requests, and the positions of their images in the batch.
        """
        while waiting := [(owner, lanes, owner.request) for owner, lanes in owners if owner.request is not None]:
            for group in self.networks.groups([request for _, _, request in waiting]):
                places = [lane for at in group for lane in waiting[at][1]]
                answers, counts = self.networks.answer([waiting[at][2] for at in group], places)
                for at, answer, count in zip(group, answers, counts, strict=True):
                    owner = waiting[at][0]
                    owner.rows += count
                    owner.answer(answer)

    def run(self, call: OpenCall) -> tuple[AtStep, list[tuple[NetworkRequest, Any]]]:
        """Answers the network requests of a call, one by one, until it waits at its scheduler's step.

        Returns:
            (the arguments of the step, the requests with their outputs).

        Raises:
            CapabilityError: for a pipeline that leaves its loop earlier.
        """
        answered = []
        while (request := call.request) is not None:
            [answer], [count] = self.networks.answer([request], [0])
            answered.append((request, answer))
            call.rows += count
            call.answer(answer)
        return self._at_step(call), answered

    def _at_step(self, call: OpenCall) -> AtStep:
        if not isinstance(call.event, AtStep):
            raise CapabilityError(
                f"a {type(self.pipe).__name__} left its loop before its scheduler's step", "it cannot be driven"
            )
        call.event.rows = call.rows
        return call.event

    def _recorder(self) -> Recorder | None:
        return Recorder() if self.replays.enabled and self.networks.joins else None

    def _brought(self, evaluation: Evaluation) -> OpenCall:
        """An open call of the evaluation's request that waits with the network request for its latents and time."""
        request, scale, x, plan = evaluation.request, evaluation.scale, evaluation.x, evaluation.request.plan
        assert plan is not None
        wanted = self.replays.wanted(evaluation)
        # The first request of a new call belongs to the plan's first level; other levels need a step before them.
        start = plan.convention.scheduler_sigma(float(plan.levels[0]))
        if evaluation.index == 0 and equal_levels(start, evaluation.sigma):
            call = self._at_start(request, plan, scale, x)
            if call.drawn is not None and same_latents(call.drawn, x):
                call.recorder = call.recorder if wanted else None
                return call
        else:
            call = self._before(request, scale, max(1, evaluation.index))
        self.blank_step(call)
        assert call.times is not None
        while call.index < evaluation.index - 1:
            call.resume(self._at_step(call).sample, call.times[call.index + 1])
            self.blank_step(call)
        call.resume(x, evaluation.time, evaluation.sigma, self._recorder() if wanted else None)
        return call

    def _at_start(self, request: CallRequest, plan: SchedulerPlan, scale: float | None, x: Tensor) -> OpenCall:
        """A call that waits with its first request; for these latents, if the pipeline draws or accepts them."""
        waiting = request.calls(scale)
        for call in waiting:
            if call.request is not None and call.drawn is not None and same_latents(call.drawn, x):
                waiting.remove(call)
                return call
        for drawn, before in request.draws:
            if same_latents(drawn, x):
                return self.open_call(request, scale, before.clone_state(), self._recorder())
        if "latents" in self.arguments.parameters and "latents" not in request.arguments:
            factor = float(getattr(plan.scheduler, "init_noise_sigma", 1.0))
            try:
                return self.open_call(request, scale, request.noise_again(), self._recorder(), latents=x / factor)
            except (ConfigError, CapabilityError):
                pass  # it expects them in a different form
        return self.open_call(request, scale, request.noise_again())

    def _before(self, request: CallRequest, scale: float | None, index: int) -> OpenCall:
        """The waiting call closest before an index of the plan, else a new one; blank outputs bring it to its step."""
        waiting = request.calls(scale)
        best = max((call for call in waiting if call.index < index), key=lambda call: call.index, default=None)
        if best is None:
            return self.open_call(request, scale, request.noise_again())
        waiting.remove(best)
        return best

    def blank_step(self, call: OpenCall) -> None:
        """Advances a call to its scheduler's step with blank outputs, without network evaluations."""
        call.recorder = None
        with pipeline_errors(self.pipe, "a step", call.arguments):
            while (request := call.request) is not None:
                call.answer(self.networks.blank_answer(request))
        self._at_step(call)

    # Images.

    def finish(self, ends: Sequence[tuple[CallRequest, Tensor]]) -> list[Any]:
        """The pipeline's outputs for final latents, each (1, ...) in the pipeline's layout; decoded together.

        If the decoder returns NaN or infinity, the output is an image of NaN.

        Raises:
            ConfigError: when the decoder or the pipeline refuses what it is given.
            CapabilityError: when one of them fails otherwise.
        """
        calls = []
        at_end = pipeline_errors(self.pipe, "the end of a call", ends[0][0].arguments)
        with at_end, kept_precision(self.pipe) as precisions:
            for request, x in ends:
                call = self._ending(request)
                call.finish(x)
                calls.append(call)
                event = call.event
                if isinstance(event, AtDecode) and precision_of(event.module) != precisions[event.module]:
                    # The pipeline casts its autoencoder to float32 and back around each decode.
                    self._decode([call])
            self._decode(calls)
        found = [call.event for call in calls]
        assert all(isinstance(event, CallEnd) for event in found)
        return [event.output for event in found]  # type: ignore[union-attr]

    def _ending(self, request: CallRequest) -> OpenCall:
        """An open call of a request that waits at its scheduler's step and can be finished."""
        known = next((calls for scale in request.waiting if (calls := request.calls(scale))), None)
        call = self.open_call(request, None, request.noise_again()) if known is None else known.pop(0)
        self.blank_step(call)
        return call

    def _decode(self, calls: Sequence[OpenCall]) -> None:
        """Answers the calls that wait for their decoder."""
        groups: dict[Any, list[OpenCall]] = {}
        for call in calls:
            event = call.event
            if not isinstance(event, AtDecode):
                continue
            kwargs = {name: value for name, value in event.kwargs.items() if name != "generator" or draws(event.module)}
            same = self.networks.digests((event.args, kwargs))
            key = (id(event.module), event.latents.shape, event.latents.dtype, same)
            groups.setdefault(key, []).append(call)
        for group in groups.values():
            for start in range(0, len(group), DECODED_AT_ONCE):
                part = group[start : start + DECODED_AT_ONCE]
                events: list[AtDecode] = [call.event for call in part]  # type: ignore[misc]
                first = events[0]
                with torch.no_grad(), alone(self.pipe):
                    latents = torch.cat([event.latents for event in events]) if len(part) > 1 else first.latents
                    answer = first.module.decode(latents, *first.args, **first.kwargs)
                for row, call in enumerate(part):
                    own = answer if len(part) == 1 else tree_map_only(Tensor, itemgetter(slice(row, row + 1)), answer)
                    if (image := next(part for part in tree_leaves(own) if isinstance(part, Tensor))).isfinite().all():
                        call.answer(own)
                    else:
                        # The pipeline's post-processing would turn infinity into white, and raise for NaN.
                        call.close()
                        call.event = CallEnd((torch.full((1, 3, *image.shape[-2:]), math.nan),))


def draws(autoencoder: Any) -> bool:
    """Whether a decoder may draw from its ``generator`` argument; diffusers' usual ones accept and ignore it."""
    return type(autoencoder).__name__ not in ("AutoencoderKL", "AutoencoderTiny")

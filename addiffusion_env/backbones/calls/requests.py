"""Requests to a pipeline: the call of an image, and one evaluation of it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from addiffusion_env.backbones.calls.open_call import OpenCall
from addiffusion_env.backbones.calls.scheduler import SchedulerPlan
from addiffusion_env.prompts import Prompt, keyed_generator


class CallRequest:
    """The arguments of a pipeline's call for one image, without noise.

    Attributes:
        arguments: keyword arguments of ``__call__``: prompt, size, number of steps ...
        plan: its scheduler's plan; ``None`` until a call was opened.
        rng_state: state of torch's global CPU generator while a call is opened, for pipelines that draw from it;
            ``None`` leaves the generator unchanged.
        generator: the user's own, which the noise of steps advances as in the pipeline's call; ``None`` for another.
        waiting: the open calls, by guidance scale.
        noise: the generator from which its first call drew, at its state before; ``None`` until then.
        draws: noise drawn for it, each with the generator's preceding state, so that a reopened call draws it again.
        lanes: recordings of its loop, by guidance scale (:mod:`calls.replays`).
        adapters: state of the pipeline's adapters when its first call was opened; ``None`` before.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = dict(arguments)
        self.plan: SchedulerPlan | None = None
        self.rng_state: Tensor | None = None
        self.generator: torch.Generator | None = None
        self.waiting: dict[float | None, list[OpenCall]] = {}
        self.noise: torch.Generator | None = None
        self.draws: list[tuple[Tensor, torch.Generator]] = []
        self.lanes: dict[float | None, Any] = {}
        self.adapters: Any = None
        weakref.finalize(self, _close_all, self.waiting)

    @property
    def steps(self) -> int:
        """Number of steps of the schedule, as the pipeline's own argument."""
        return int(self.arguments["num_inference_steps"])

    def keyed(self, prompt: Prompt, seed: int, stream: str = "initial") -> torch.Generator:
        """The generator of the image's noise: the one that the user gave, or that of its prompt and seed."""
        generator = self.arguments.pop("generator", None)
        if generator is not None and stream == "initial":
            self.rng_state, self.generator = torch.get_rng_state(), generator
            return generator
        self.rng_state = keyed_generator(prompt.prompt_id, seed, "global").get_state()
        generator = keyed_generator(prompt.prompt_id, seed, stream)
        if stream != "initial":
            self.draw_again(generator)
        return generator

    def noise_again(self) -> torch.Generator:
        """The generator of a further call, which encodes images and blends with the same noise as the first."""
        return torch.Generator().manual_seed(0) if self.noise is None else self.noise.clone_state()

    def calls(self, scale: float | None) -> list[OpenCall]:
        """The waiting calls at a guidance scale; those of other threads cannot be resumed here and are dropped."""
        waiting = self.waiting.setdefault(scale, [])
        here = threading.get_ident()
        if any(call.thread != here for call in waiting):
            waiting[:] = [call for call in waiting if call.thread == here]
        return waiting

    def draw_again(self, generator: torch.Generator) -> None:
        """Other noise in place of ``latents`` that the user gave, from which every attempt would be the same image."""
        given = self.arguments.get("latents")
        if given is not None:
            self.arguments["latents"] = torch.randn(given.shape, generator=generator).to(given)

    def advance(self, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> None:
        """Advances the user's generator by one step's noise, if the lane was where that generator is.

        Args:
            before: the lane's scheduler before the step (:data:`.scheduler.State`).
            after: the same after the step.
        """
        if self.generator is None or before is None or after is None or before["generator"] is None:
            return
        if torch.equal(self.generator.get_state(), before["generator"]):
            self.generator.set_state(after["generator"])


def _close_all(waiting: dict[float | None, list[OpenCall]]) -> None:
    for calls in waiting.values():
        for call in calls:
            call.close()
    waiting.clear()


@dataclass(slots=True, eq=False)
class Evaluation:
    """One denoiser evaluation of one lane.

    Attributes:
        request: the request of its image.
        scale: guidance scale, as the pipeline's own argument; ``None`` for the request's own value.
        index: index in the plan.
        time: timestep input of the denoiser.
        sigma: noise level in the scheduler's own ``sigmas``.
        x: (1, ...) latents in the pipeline's layout and space.
    """

    request: CallRequest
    scale: float | None
    index: int
    time: Any
    sigma: float
    x: Tensor


def same_latents(a: Tensor, b: Tensor) -> bool:
    """Whether two latents are equal, up to the rounding error of rescaling back and forth."""
    return same_rows([a], [b])[0]


def same_rows(one: Sequence[Tensor], two: Sequence[Tensor]) -> list[bool]:
    """:func:`same_latents` of each pair, with a single synchronisation with the device where all shapes are equal."""
    if len({a.shape for a in (*one, *two)}) > 1:
        pairs = zip(one, two, strict=True)
        return [a.shape == b.shape and same_rows([a], [b])[0] for a, b in pairs]
    first, second = torch.stack(list(one)).float().flatten(1), torch.stack(list(two)).float().flatten(1)
    rounding = 1e-5 if one[0].dtype in (torch.float32, torch.float64) else 1e-2
    equal: list[bool] = ((first - second).abs().amax(1) <= rounding * first.abs().amax(1)).tolist()
    return equal


def exact_latents(evaluations: Sequence[Evaluation]) -> list[Tensor]:
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

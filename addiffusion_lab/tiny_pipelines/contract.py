"""Measurements of a diffusers pipeline as a backbone: agreement with its own call, and its conventions.

The contract test asserts them for every tiny pipeline, and ``python -m addiffusion_env check --pipelines`` writes them
to ``docs/pipelines.md`` (:mod:`addiffusion_lab.tiny_pipelines.page`).
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from addiffusion_env.backbones.calls.measured import at_index, first_step, image_of, response
from addiffusion_env.backbones.calls.networks import holds_state
from addiffusion_env.backbones.calls.requests import CallRequest
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.backbones.solvers import SCHEDULER
from addiffusion_env.engine.coroutines import advance, ask, exit_early, finished
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import Lane, open_lane
from addiffusion_env.engine.process import REFINE_PRESETS, ProcessConfig
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers.image_scores import NoScorers
from addiffusion_lab.tiny_pipelines import ZOO

TEXTS = ("a red cup left of the dog", "a photo of the cat on a sofa", "two dogs")
TIMES = ("timestep", "timesteps", "t", "timestep_ratio")
"""Names of the timestep argument of diffusers' denoisers."""


class Case:
    """A tiny pipeline, its backbone, and the images that the pipeline itself draws.

    Args:
        name: name of an entry of :data:`addiffusion_lab.tiny_pipelines.ZOO`.

    Attributes:
        warned: warnings that were raised while the pipeline was measured.
    """

    def __init__(self, name: str) -> None:
        self.builder = ZOO[name]
        self.pipe = self.builder()
        given = self.builder.arguments(TEXTS[0])
        arguments = {key: value for key, value in given.items() if key not in ("prompt", "output_type")}
        with warnings.catch_warnings(record=True) as self.warned:
            warnings.simplefilter("always")
            self.backbone = PipelineBackbone(self.pipe, arguments)
        capabilities = self.backbone.capabilities
        self.process = ProcessConfig(
            steps=arguments["num_inference_steps"],
            spacing=SCHEDULER,
            solver=SCHEDULER,
            guidance_scale=capabilities.default_guidance,
            network_calls=capabilities.network_calls,
            refine=REFINE_PRESETS["off"],
        )
        self.engine = Engine(self.backbone, NoScorers(), solver=SCHEDULER)

    def prompt(self, row: int) -> Prompt:
        """A prompt with the same noise as :meth:`drawn`."""
        given = self.builder.inputs(TEXTS[row])
        text = given.pop("prompt", TEXTS[row])
        return replace(Prompt.of(text), arguments={**given, "generator": torch.Generator().manual_seed(row)})

    def drawn(self, row: int, seed: int | None = None) -> Tensor:
        """The image of the pipeline's own call, (1, 3, H, W) in [-1, 1]; the default seed is the row number."""
        return image_of((self.builder.draw(self.pipe, TEXTS[row], seed=row if seed is None else seed),))

    def lane(self, row: int) -> Lane:
        """A lane before its first evaluation."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # as in Builder.draw: one pipeline encodes its image with torch's global generator
            return open_lane(self.backbone, self.process, self.prompt(row), 0)

    def coroutine(self, row: int, delay: int = 0) -> Any:
        """Generates one image, after ``delay`` evaluations without a step."""
        lane = self.lane(row)
        for _ in range(delay):
            yield ask(self.process, lane, lane.latents, None)
        while lane.remaining:
            lane = yield from advance(self.process, lane)
        image = yield from finished(lane)
        return lane, image.tensor[None]

    @property
    def not_joined(self) -> str:
        """The warning's reason why its network calls are not joined; empty if they are."""
        said = [str(item.message).splitlines()[0] for item in self.warned if "not joined" in str(item.message)]
        return said[0].partition("not joined: ")[2] if said else ""

    def alone(self) -> tuple[Lane, Tensor]:
        """Generates the first image alone: the final lane, and the image (1, 3, H, W)."""
        found: tuple[Lane, Tensor] = self.engine.run([self.coroutine(0)])[0]
        return found

    def joined(self) -> list[Tensor]:
        """Generates three images of different prompts together, each one evaluation behind the previous one."""
        return [image for _, image in self.engine.run([self.coroutine(row, delay=row) for row in range(3)])]

    def early_exit(self) -> tuple[Lane, Tensor, Tensor]:
        """Ends the first image after one step, at its clean prediction.

        Returns:
            The final lane, its image, and the image of the pipeline's own call when its loop ends there.
        """
        process = replace(self.process, early_exit_steps=0)

        def stopped() -> Any:
            lane = yield from advance(process, self.lane(0))
            lane = yield from exit_early(self.backbone, process, lane)
            image = yield from finished(lane)
            return lane, image.tensor[None]

        lane, tensor = self.engine.run([stopped()])[0]
        assert lane.x0 is not None
        levels = self.backbone.plan_of(lane.conditioning.requests[0]).levels
        scale = self.backbone.convention.scale(float(levels[-1]))
        with self._steps_to(self.backbone.measured.layout.back(lane.x0) * scale):
            return lane, tensor, self.drawn(0)

    @contextmanager
    def _steps_to(self, last: Tensor) -> Iterator[None]:
        """Context manager in which every step of the pipeline's scheduler returns ``last``."""
        kind = type(self.pipe.scheduler)
        own = kind.step

        @functools.wraps(own)
        def step(self: Any, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
            self._step_index = 1 + (getattr(self, "_step_index", None) or 0)
            return SimpleNamespace(prev_sample=last) if return_dict else (last, last)

        kind.step = step
        try:
            yield
        finally:
            kind.step = own

    def requests(self) -> list[CallRequest]:
        """Requests for three prompts: two of equal length and a longer one."""
        texts = ("a red cup", "a red dog", "a photo of a red cup left of the dog and the cat")
        found = []
        for text in texts:
            given = self.builder.inputs(text)
            found.append(self.backbone.request(replace(Prompt.of(given.pop("prompt", text)), arguments=given)))
        return found


def network_rows(case: Case) -> list[tuple[str, int]]:
    """(component, rows) of each network call of one step for one image, in order."""
    evaluator = case.backbone.evaluator
    _, called = first_step(evaluator, case.backbone.measured.request)
    return [(request.site[0], evaluator.networks.rows_of(request)) for request, _ in called]


def times_heard(case: Case) -> list[float]:
    """The timesteps that the denoiser receives in the pipeline's own call, one per network call."""
    module: nn.Module = case.backbone.network.module
    parameters = inspect.signature(type(module).forward)
    heard: list[float] = []

    def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = parameters.bind(module, *args, **kwargs).arguments
        heard.extend(float(torch.as_tensor(given[name]).flatten()[0]) for name in TIMES if name in given)

    handle = module.register_forward_pre_hook(listen, with_kwargs=True)
    try:
        case.drawn(0)
    finally:
        handle.remove()
    return heard


def sign(case: Case) -> str:
    """How the network's output is converted to the scheduler's input."""
    evaluator, request = case.backbone.evaluator, case.backbone.measured.request
    base = response(evaluator, request, None, None)[0].double().nan_to_num()
    change = response(evaluator, request, None, -1)[0].double() - base
    factor = float(change.mean())
    if float((change - factor).abs().max()) > 1e-3 or float(base.abs().max()) > 1e-3:
        return "converted"
    return {1.0: "same", -1.0: "negated"}.get(round(factor, 3), f"times {factor:.3g}")


def guidance_weights(case: Case, scale: float | None) -> list[tuple[float, float]]:
    """For each row of a step's network calls its (lowest, highest) weight in the scheduler's input.

    The weights are relative to the result of a network whose output is equal in all rows. Rows without weight (those of
    a ControlNet, whose outputs are inputs of the denoiser) are omitted.
    """
    evaluator, request = case.backbone.evaluator, case.backbone.measured.request
    blank, rows = response(evaluator, request, scale, None)
    base = blank.double().nan_to_num()  # rescaling zeros is 0 / 0
    whole = response(evaluator, request, scale, -1)[0].double() - base
    found = []
    for row in range(rows):
        share = ((response(evaluator, request, scale, row)[0].double() - base) / whole).nan_to_num()
        found.append((float(share.min()), float(share.max())))
    return [weight for weight in found if any(abs(edge) > 1e-3 for edge in weight)]


def guidance_formula(case: Case) -> str:
    """How the scale ``g`` weights the network's outputs."""
    name = case.backbone.arguments.guidance_name
    if sum(rows for _, rows in network_rows(case)) == 1:
        return "none" if case.backbone.measured.guidance.name is None else "read by the network"
    own = name is not None and isinstance(case.backbone.arguments.value(name), int | float)
    scales = (3.0, 5.0) if own else (None, None)
    low, high = (guidance_weights(case, scale) for scale in scales)
    channels = ", some channels" if any(b - a > 0.05 for a, b in low) else ""
    peaks = [max((b for _, b in found), default=0.0) for found in (low, high)]
    for formula, added in (("g", 0), ("1 + g", 1)):
        if len(low) == 2 and abs(peaks[0] - 3 - added) < 0.05 and abs(peaks[1] - 5 - added) < 0.05:
            return formula + channels
    if len(low) == 1 and abs(peaks[0] - peaks[1]) < 0.05:
        guided = case.backbone.measured.guidance.rows
        return "none" if guided[0] == guided[1] else "rescaled"
    weights = " ".join(f"{b:+.2g}" for _, b in low)
    if not own:
        return f"a custom guider ({weights})"
    return f"three branches ({weights})" if len(low) == 3 else f"weights {weights}{channels}"


def joined_lengths(case: Case) -> str:
    """Whether the calls of two images are joined: for prompts of any length, of equal length, or never."""
    evaluator, networks = case.backbone.evaluator, case.backbone.evaluator.networks
    if not networks.joins:
        return "no"
    first, same, longer = [at_index(evaluator, request, None, 0) for request in case.requests()]

    def calls(evaluations: list[Any]) -> int:
        before = sum(networks.network_calls.values())
        evaluator.evaluate(evaluations)
        return sum(networks.network_calls.values()) - before

    one = calls([first])
    counts = [calls([first, other]) for other in (longer, same)]
    if counts[0] == one:
        return "any"
    if counts[1] == one:
        return "one length" if counts[0] == 2 * one else f"one length; {2 * one - counts[0]} of {one} calls any"
    _, found = first_step(evaluator, case.backbone.measured.request)
    cached = any(holds_state((request.inputs, answer)) for request, answer in found)
    return f"no: {'a cache in each call' if cached else 'inputs differ'}"

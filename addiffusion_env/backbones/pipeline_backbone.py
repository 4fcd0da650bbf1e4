"""Any loaded diffusers pipeline as a backbone, driven by its own ``__call__``.

This module is independent of the architecture. Prompt templates, packing, guidance formulas, signs and time scales
remain the pipeline's; the required properties are measured when it is wrapped (:mod:`backbones.calls.measured`): the
batch axes of its network calls, whether joining them changes results, the layout of its latents, the cost of guidance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from addiffusion_env.backbones.base import Backbone, Capabilities, Load, check_prompts
from addiffusion_env.backbones.batches import Conditioning, Latents, Prediction
from addiffusion_env.backbones.calls.arguments import PipelineArguments, check_steps
from addiffusion_env.backbones.calls.denoiser_hooks import DenoiserHooks
from addiffusion_env.backbones.calls.evaluator import Evaluator
from addiffusion_env.backbones.calls.latent_layout import LatentLayout
from addiffusion_env.backbones.calls.loaded import (
    NO_LIMIT,
    ays_timesteps,
    check_pipeline,
    check_size,
    check_windows,
    parts_of,
    token_limit,
)
from addiffusion_env.backbones.calls.measured import PROMPTS, Measurements, image_of, measure, measure_decoding
from addiffusion_env.backbones.calls.preview_decoder import PreviewDecoder
from addiffusion_env.backbones.calls.requests import CallRequest, Evaluation
from addiffusion_env.backbones.calls.scheduler import SchedulerPlan, SchedulerSteps, StepRequest
from addiffusion_env.backbones.conventions import Discrete
from addiffusion_env.backbones.fingerprint import name_of
from addiffusion_env.backbones.identity import described
from addiffusion_env.backbones.pipeline_options import PipelineOptions
from addiffusion_env.backbones.pipelines import PipelineSpec, load_pipeline
from addiffusion_env.backbones.schedules import rows
from addiffusion_env.backbones.solvers import SCHEDULER, ddim_step
from addiffusion_env.errors import CapabilityError
from addiffusion_env.prompts import Prompt

if TYPE_CHECKING:
    from typing_extensions import Self

LOADING = ("variant", "pipeline_kwargs")
"""Options that are read when a pipeline is loaded."""


class PipelineBackbone(Backbone):
    """A text-to-image pipeline of diffusers, or of a user-defined class with the same interface.

    Latents are stored as (C, h, w), the layout of the autoencoder's input, if the pipeline's own layout is a
    permutation of that. Guidance scales are those of classifier-free guidance, 1 being none; a pipeline that adds its
    scale to 1 (Z-Image, Krea 2) is passed one less.

    Args:
        pipe: the pipeline, on its device; its weights are shared and it is not modified.
        arguments: keyword arguments of its ``__call__`` for every image (``height``, ``negative_prompt`` ...).
        **options: the fields of :class:`PipelineOptions`.

    Attributes:
        spec: the checkpoint of a backbone of one pipeline class; ``None`` for any pipeline.
        own: arguments of the pipeline's call that differ from the pipeline's own defaults.
        more_options: further options of the class.

    Raises:
        CapabilityError: for a pipeline without a denoising loop, with a cache on its denoiser, or with a scheduler
            whose noise levels are not known.
        ConfigError: for arguments that its ``__call__`` does not have, that the engine sets itself, or that the
            pipeline refuses; for an option that does not exist or would have no effect.
    """

    name = "diffusers"
    spec: ClassVar[PipelineSpec | None] = None
    own: ClassVar[Mapping[str, Any]] = {}
    more_options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, pipe: Any, arguments: Mapping[str, Any] | None = None, **options: Any) -> None:
        self.options = self._options(options)
        self.pipe, self.arguments = pipe, PipelineArguments.of(pipe, {**self.own, **(arguments or {})})
        check_pipeline(pipe)
        self._measure()

    @classmethod
    def _options(cls, options: Mapping[str, Any], more: Sequence[str] = ()) -> PipelineOptions:
        known = (*cls.more_options, *more)
        plain = {name: value for name, value in options.items() if name not in known}
        return PipelineOptions.from_keywords(plain, cls.name, known)

    def _measure(self) -> None:
        self.options.prepare(self.pipe)
        self._parts = parts_of(self.pipe)
        self.evaluator = Evaluator(self.arguments)
        with torch.random.fork_rng(devices=[]):
            self.measured: Measurements = measure(self.evaluator)
        assert self.measured.request.plan is not None
        check_size(self.pipe, self.arguments, self.measured.image_size)
        self.convention = self.measured.request.plan.convention
        if isinstance(self.convention, Discrete):
            self.convention.schedule = replace(self.convention.schedule, ays_timesteps=ays_timesteps(self.pipe))
        self.path = self.convention.path
        self._early_exits.clear()
        self.device, self.decoder_name = torch.device(self.measured.device), self.measured.decoder_name
        self.network = DenoiserHooks(self.evaluator, self.measured)
        networks = self.evaluator.networks
        networks.buckets = self.options.buckets
        denoisers = [getattr(self.pipe, name) for name in networks.network_calls]
        networks.compiled = self.options.compute_forms(self.pipe, denoisers, self.device)
        self.preview_decoder = PreviewDecoder(
            type(self.pipe).__name__, self.measured, self.decode, self.options.preview
        )
        self.steps = SchedulerSteps()
        self._plans: dict[int, CallRequest] = {}
        self._layouts = {self.measured.layout.inner: self.measured.layout}
        self.capabilities = self._capabilities()
        self._most_tokens = NO_LIMIT if self.options.truncate_prompts else self.capabilities.max_tokens

    def __reduce__(self) -> tuple[Any, ...]:
        # Suspended calls and recordings cannot be copied or pickled: the copy measures its own pipeline.
        return partial(type(self), **vars(self.options)), (self.pipe, dict(self.arguments.given))

    @property
    def denoiser(self) -> Any:
        """The prompt-conditioned network."""
        return self.network.module

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the pipeline's latents."""
        return self.measured.dtype

    @classmethod
    def needs(cls) -> str:
        """A pipeline, since there is no default one."""
        return "a pipeline (pipe= or name_or_path=)"

    @classmethod
    def from_pretrained(cls, load: Load | None = None) -> Self:
        """Loads the pipeline that ``load.name_or_path`` names: a hub id, a folder or a single file.

        Its options are those of the class, ``variant`` of the weight files (``"fp16"``), and ``pipeline_kwargs``.

        Raises:
            ConfigError: when no model is named; for an unknown option, or an unavailable device or precision.
            WeightsError: when the weights are not available.
        """
        load = load or Load()
        known = cls._options(load.options, LOADING)
        options = {name: value for name, value in load.options.items() if name not in LOADING}
        pipe = load_pipeline(load, load.options.get("variant"), known.offload, cls.spec)
        return cls(pipe, load.options.get("pipeline_kwargs"), **options)

    @classmethod
    def from_pipeline(cls, pipe: Any, pipeline_kwargs: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """Wraps a loaded pipeline on its current device: a fine-tune, one with a LoRA, one from a single file.

        Args:
            pipe: the pipeline.
            pipeline_kwargs: arguments of its ``__call__`` for every image.
            **options: see the class.

        Raises:
            WeightsError: for a pipeline of a class that the backbone does not support.
            ConfigError: for an unknown option.
        """
        return cls(pipe, pipeline_kwargs, **options)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The pipeline with all its components, the arguments of its calls, and the preview decoder."""
        parts = {
            "pipe": self.pipe,
            "arguments": self.arguments.given,
            "preview": self.preview_decoder.find(),
            "options": replace(self.options, preview=None),  # the decoder is described by its content
            "capabilities": self.capabilities,
            "device": self.device,
            "dtype": self.measured.dtype,
        }
        return {"class": name_of(type(self)), **described(parts)}

    def refresh(self) -> None:
        """See :meth:`Backbone.refresh`; a pipeline that was moved, or has replaced components, is measured again."""
        check_pipeline(self.pipe)
        if self._parts != parts_of(self.pipe):
            self._measure()

    def to(self, *args: Any, **kwargs: Any) -> None:
        """Moves the pipeline; the arguments are those of the pipeline's own ``to``."""
        self.pipe.to(*args, **kwargs)
        self.refresh()

    def _capabilities(self) -> Capabilities:
        measured, arguments = self.measured, self.arguments
        guidance = measured.guidance
        return Capabilities(
            latent_shape=measured.layout.shape,  # type: ignore[arg-type]
            image_size=measured.image_size,
            preview_size=self.preview_decoder.size,
            guidance=guidance.name is not None,
            attention_grid=self.network.grid,
            max_tokens=token_limit(self.pipe, arguments),
            default_steps=arguments.steps,
            default_guidance=guidance.own,
            default_solver=SCHEDULER,
            default_spacing=SCHEDULER,
            feature_dim=self.network.feature_dim,
            network_calls=guidance.rows,
            masks=measured.layout.spatial,
            previews=self.preview_decoder.possible,
        )

    def request(self, prompt: str | Prompt, steps: int | None = None) -> CallRequest:
        """The pipeline request of one image."""
        text = prompt.text if isinstance(prompt, Prompt) else prompt
        more = prompt.arguments if isinstance(prompt, Prompt) else {}
        made = CallRequest(self.arguments.call(text, steps or self.capabilities.default_steps, more))
        check_steps(made.arguments)
        return made

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Creates requests for prompts; the pipeline encodes each text once, when the first call is opened."""
        texts = check_prompts(prompts)
        check_windows(self.pipe, texts, self._most_tokens)
        content = self.network.content_positions(texts)
        return Conditioning({}, content, tuple(self.request(text) for text in texts))

    def rephrased(self, conditioning: Conditioning, text: str) -> Conditioning:
        """See :meth:`Backbone.rephrased`; size and other arguments are unchanged."""
        request = conditioning.requests[0]
        return Conditioning({}, conditioning.content, (CallRequest({**request.arguments, "prompt": text}),))

    def begin(
        self, images: Sequence[tuple[Prompt, int]], steps: int, spacing: str
    ) -> tuple[Conditioning, Latents, list[np.ndarray]]:
        """See :meth:`Backbone.begin`; the pipeline draws the noise, with the generator of each prompt and seed."""
        texts = [prompt.text for prompt, _ in images]
        check_windows(self.pipe, texts, self._most_tokens)
        with self.evaluator.texts.unchanged():
            begun = [self._begun(*image, steps, spacing) for image in images]
        content = self.network.content_positions(texts)
        conditioning = Conditioning({}, content, tuple(part[0] for part in begun))
        return conditioning, Latents.cat([latents for _, latents, _ in begun]), [levels for _, _, levels in begun]

    def draw(self, *image: Any, **stream: Any) -> tuple[Latents, np.ndarray]:
        """See :meth:`Backbone.draw`."""
        return self._begun(*image, **stream)[1:]

    def _begun(
        self, prompt: Prompt, seed: int, steps: int, spacing: str, stream: str = "initial"
    ) -> tuple[CallRequest, Latents, np.ndarray]:
        """The request of an image, with the latents and levels that its call begins with."""
        request = self.request(prompt, steps)
        generator = request.keyed(prompt, seed, stream)
        inner, state = self.evaluator.drawn(request, None, generator)
        plan = self.plan_of(request)
        if spacing == SCHEDULER:
            levels = plan.levels
        elif plan.begin:
            raise CapabilityError(
                f"spacing={spacing} starts at pure noise, and this pipeline starts at step {plan.begin} of its plan",
                "use spacing=scheduler",
            )
        else:
            levels = self.sigmas(steps, spacing)
        x = self.layout_of(inner, request).outer(inner.float() / self.convention.scale(float(plan.levels[0])))
        latents = Latents.start(x, torch.tensor([levels[0]], dtype=torch.float64))
        history = replace(latents.history, scheduler=({"index": 0, "values": {}, **state},))
        return request, replace(latents, history=history), levels

    def resumed(self, prompt: Prompt, seed: int, steps: int | None) -> Conditioning:
        """See :meth:`Backbone.resumed`."""
        request = self.request(prompt, steps)
        request.noise = request.keyed(prompt, seed)
        return Conditioning({}, self.network.content_positions([prompt.text]), (request,))

    def plan_of(self, request: CallRequest) -> SchedulerPlan:
        """The plan of a request's call, which is opened if necessary."""
        if request.plan is None:
            self.evaluator.drawn(request, None, request.noise_again())
        assert request.plan is not None
        return request.plan

    def sigmas(self, steps: int, spacing: str) -> np.ndarray:
        """See :meth:`Backbone.sigmas`; ``spacing="scheduler"`` is the plan of the pipeline itself."""
        if spacing != SCHEDULER:
            return self.convention.respaced(steps, spacing)
        if steps not in self._plans:
            self._plans[steps] = self.request(PROMPTS[0], steps)
        return self.plan_of(self._plans[steps]).levels

    def evaluations(self, prompt: Prompt, steps: int) -> int:
        """Evaluations of an image with its own arguments: fewer than ``steps`` from the middle of a schedule."""
        request = self.request(prompt, steps)
        request.rng_state = torch.get_rng_state()  # restored afterwards
        return len(self.plan_of(request).times)

    def timestep_position(self, sigma: Tensor) -> Tensor:
        """See :meth:`Backbone.timestep_position`."""
        return self.convention.position(sigma)

    def timesteps(self, sigma: Tensor) -> Tensor:
        """The value of ``t`` in the pipeline's loop at each noise level."""
        plan = self.plan_of(self.measured.request)
        return torch.tensor([self.convention.time_at(float(level), plan.times, plan.levels) for level in sigma])

    def layout_of(self, inner: Tensor, request: CallRequest) -> LatentLayout:
        """The layout of latents; if their size differs from the measured one, it is learned from the request's call."""
        shape = tuple(inner.shape[1:])
        if shape not in self._layouts:
            self._layouts[shape] = measure_decoding(self.evaluator, request, inner)[0]
        return self._layouts[shape]

    @torch.no_grad()
    def predict(
        self,
        x: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        guidance_scale: Tensor,
        capture: Tensor | None = None,
    ) -> Prediction:
        """See :meth:`Backbone.predict`: advances every row's pipeline call, with network calls joined."""
        requests: Sequence[CallRequest] = conditioning.requests
        levels = sigma.tolist()
        layout = self._layout_for(x, requests[0])
        factors = torch.tensor([self.convention.scale(level) for level in levels], dtype=torch.float64)
        inner = layout.back(x)
        inner = (inner * rows(factors, inner)).to(self.measured.dtype)
        guidance = self.measured.guidance
        lanes = zip(requests, levels, guidance_scale.tolist(), inner.split(1), strict=True)
        evaluations = [
            Evaluation(request, guidance.argument_for(request, scale), *self.plan_of(request).at(level), latents)
            for request, level, scale, latents in lanes
        ]
        self.network.watch(capture, self.capabilities.attention_grid)
        found = self.evaluator.evaluate(evaluations)
        samples = torch.cat([item.sample for item in found]).float()
        outputs = torch.cat([item.output for item in found]).float()
        x0 = layout.outer(self.convention.clean(samples / rows(factors, samples), outputs, sigma))
        calls = torch.tensor([item.rows for item in found])
        attention, features = self.network.seen(len(x))
        return Prediction(x0, calls, attention, features, tuple(found))

    def _layout_for(self, x: Tensor, request: CallRequest) -> LatentLayout:
        if known := [layout for layout in self._layouts.values() if layout.shape == tuple(x.shape[1:])]:
            return known[0]
        return self.layout_of(self.evaluator.drawn(request, None, request.noise_again())[0], request)

    def scheduler_step(
        self, latents: Latents, prediction: Prediction, conditioning: Conditioning, sigma_next: Tensor
    ) -> Latents:
        """See :meth:`Backbone.scheduler_step`."""
        layout = self._layout_for(latents.x, conditioning.requests[0])
        states: list[Mapping[str, Any] | None] = [None] * len(sigma_next)
        wanted: dict[int, StepRequest] = {}
        targets = sigma_next.tolist()
        lanes = zip(conditioning.requests, latents.sigma.tolist(), targets, strict=True)
        for row, (request, now, after) in enumerate(lanes):
            plan, state = self.plan_of(request), latents.history.scheduler[row]
            if (index := plan.index_of_step(state, now, after)) is not None:
                wanted[row] = StepRequest(plan, state, index, prediction.steps[row])
        made, after = self.steps.step(list(wanted.values()))
        for row, state in zip(wanted, after, strict=True):
            states[row] = state
            conditioning.requests[row].advance(latents.history.scheduler[row], state)
        taken = [row for row, state in enumerate(states) if state is not None]
        if len(taken) < len(targets):
            # Steps outside the plan (early exit, refinement) are first-order steps along the path.
            x = ddim_step(self.path, latents, prediction.x0, sigma_next).x
        if made is not None:
            factors = torch.tensor([self.convention.scale(targets[row]) for row in taken])
            made = layout.outer(made.float() / rows(factors, made)).to(latents.x)
            x = made if len(taken) == len(targets) else x.index_copy(0, torch.tensor(taken, device=x.device), made)
        past = latents.history.then(prediction.x0, latents.sigma)
        kept = [state or before for state, before in zip(states, latents.history.off_plan(), strict=True)]
        return Latents(x, sigma_next, replace(past, scheduler=tuple(kept)))

    @torch.no_grad()
    def decode(self, x0: Tensor, conditioning: Sequence[Conditioning] | None = None) -> Tensor:
        """Runs the pipeline's own post-processing: decoder, safety checker and image processor."""
        requests = [part.requests[0] for part in conditioning or ()] or [self.measured.request] * len(x0)
        layout = self._layout_for(x0, requests[0])
        ends = []
        for row, request in enumerate(requests):
            scale = self.convention.scale(float(self.plan_of(request).levels[-1]))
            ends.append((request, (layout.back(x0[row : row + 1]) * scale).to(self.measured.dtype)))
        return torch.cat([image_of(output) for output in self.evaluator.finish(ends)])

    @torch.no_grad()
    def preview(self, x0: Tensor) -> Tensor:
        """See :meth:`Backbone.preview`."""
        return self.preview_decoder.preview(x0)

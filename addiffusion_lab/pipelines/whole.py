"""Samplers that run a diffusers pipeline from noise to image: no decisions, no lanes, one image at a time.

They share prompts, seeds, initial noise, scorers, judges and records with the samplers that the engine runs. Their cost
is measured from outside: network calls by a hook on the denoiser, seconds by the clock.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.conventions import Discrete
from addiffusion_env.backbones.devices import quiet_loading
from addiffusion_env.backbones.fingerprint import digest_of
from addiffusion_env.backbones.identity import described
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.backbones.stable_diffusion import StableDiffusionBackbone
from addiffusion_env.engine.lane import open_lane
from addiffusion_env.engine.process import Action, ProcessConfig
from addiffusion_env.errors import CapabilityError, DeviceMemoryError, NumericsError
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import BaseSampler, BilledEpisode, EpisodeCoroutine, fixed_schedule
from addiffusion_env.scorers.image_scores import GeneratedImage, ImageScorers


@dataclass(frozen=True)
class PipelineResult:
    """The image and cost of one run of a pipeline.

    Attributes:
        image: (3, H, W) float32 in [-1, 1].
        nfe: number of evaluations; one evaluation of the process (guided or not) is 1.
        calls: rows of the denoiser's forward passes.
        costs: further costs for the record, by name (``gradient_calls``).
    """

    image: Tensor
    nfe: float
    calls: int
    costs: Mapping[str, float] = field(default_factory=dict)


class WholePipeline(BaseSampler):
    """Base class of these samplers; subclasses implement the generation of one image (:meth:`make`)."""

    steps: int
    uses_engine: ClassVar[bool] = False
    _scorers: ImageScorers | None = None
    _bound: Backbone | None = None

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the bound pipeline, so that different weights get separate records; "" if there is none."""
        pipe = getattr(self, "_pipe", None)
        return "" if pipe is None else digest_of(described(pipe))

    def bind(self, backbone: Backbone, scorers: ImageScorers) -> None:
        """Stores the scorers, which score every finished image; subclasses check the backbone first."""
        self._scorers, self._bound = scorers, backbone

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """A fixed schedule of its steps with the base guidance."""
        return fixed_schedule(base, self.steps)

    def make(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> PipelineResult:
        """Generates one image, (3, H, W) in [-1, 1], and measures its cost."""
        raise NotImplementedError

    def coroutine(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> EpisodeCoroutine:
        """A coroutine without engine requests: the pipeline runs when it starts.

        Its lane only records the costs and one *continue*; its latents are the initial noise.

        Raises:
            NumericsError: when the pipeline returns NaN or infinity; the message names sampler and prompt.
            DeviceMemoryError: when the device runs out of memory.
        """
        assert self._scorers is not None, "bind() first"
        lane = open_lane(backbone, process, prompt, seed)
        begun = time.perf_counter()
        try:
            made = self.make(backbone, process, prompt, seed)
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"{backbone.device} ran out of memory in {self.name}", "set backbone_options.offload=model"
            ) from error
        if not bool(torch.isfinite(made.image).all()):
            raise NumericsError(
                f"{self.name} drew NaN or infinity for prompt {prompt.text[:60]!r}", "use dtype=float32 or bfloat16"
            )
        scores = self._scorers.scores(made.image[None], [prompt])
        seconds = time.perf_counter() - begun
        lane = replace(
            lane,
            rest=lane.rest[-1:],
            step=process.steps,
            nfe=made.nfe,
            calls=made.calls,
            scores=scores,
            actions=(int(Action.CONTINUE),),
        )
        return BilledEpisode(lane, GeneratedImage(made.image, scores), made.costs, seconds)
        yield  # never reached: makes this function a generator


@dataclass
class Tally:
    """Counts the rows that a module was called on."""

    rows: int = 0


@contextmanager
def counted(module: nn.Module) -> Iterator[Tally]:
    """Context manager that counts the rows of every forward pass of a module."""
    tally = Tally()

    def count(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        tally.rows += len(first)  # type: ignore[arg-type]

    handle = module.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield tally
    finally:
        handle.remove()


@contextmanager
def own_processors(unet: Any) -> Iterator[None]:
    """Context manager that restores a UNet's attention processors, also if the pipeline raises."""
    before = unet.attn_processors
    try:
        yield
    finally:
        unet.set_attn_processor(before)


def unet_parts(sampler: str, backbone: Backbone) -> Any:
    """The object that holds the components of a Stable Diffusion 1.x or 2.x backbone by their names in the pipeline.

    Raises:
        CapabilityError: for other backbones.
    """
    if isinstance(backbone, StableDiffusionBackbone):
        return backbone.parts
    if (
        isinstance(backbone, PipelineBackbone)
        and is_kind(backbone.pipe, "StableDiffusionPipeline")
        and isinstance(backbone.convention, Discrete)  # DDIM steps need the training noise levels
    ):
        return backbone.pipe
    raise CapabilityError(
        f"{sampler} works in the UNet of Stable Diffusion 1.x and 2.x, this backbone is {kind_of(backbone)}",
        "use backbone=emoji, sd15 or sd21",
    )


def is_kind(pipe: Any, kind: str) -> bool:
    """Whether a pipeline is an instance of a diffusers class or was converted from one."""
    return kind in [known.__name__ for known in type(pipe).__mro__]


def kind_of(backbone: Backbone) -> str:
    """A backbone's name and, if it wraps a pipeline, the pipeline's class."""
    made = f" ({type(backbone.pipe).__name__})" if isinstance(backbone, PipelineBackbone) else ""
    return f"{backbone.name!r}{made}"


def ddim_pipeline(kind: type, backbone: Backbone, process: ProcessConfig) -> Any:
    """A diffusers pipeline of Stable Diffusion's components with a new deterministic DDIM scheduler.

    Args:
        kind: class of the pipeline.
        backbone: the backbone whose components are shared, not copied.
        process: the process that gives spacing and number of steps.
    """
    parts = unet_parts(kind.__name__, backbone)
    with quiet_loading():  # suppresses the warning that diffusers no longer maintains this pipeline
        pipe = kind(
            vae=parts.vae,
            text_encoder=parts.text_encoder,
            tokenizer=parts.tokenizer,
            unet=parts.unet,
            scheduler=ddim_scheduler(backbone, parts.scheduler, process),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return silent(pipe)


def ddim_scheduler(backbone: Any, given: Any, process: ProcessConfig) -> Any:
    """A diffusers DDIM scheduler with the engine's noise levels, prediction type and final level.

    By default it would take them from the checkpoint's config, which keeps fields that the scheduler's class ignores
    and lacks later changes; and its stride of ``T // n`` timesteps would miss the next timestep and the final level if
    n does not divide T.
    """
    from diffusers import DDIMScheduler
    from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

    convention = backbone.convention
    scheduler: Any = DDIMScheduler.from_config(
        given.config, prediction_type=convention.parametrisation, clip_sample=False, thresholding=False
    )
    scheduler.alphas_cumprod = given.alphas_cumprod.cpu()
    levels = torch.from_numpy(backbone.sigmas(process.steps, process.spacing))
    times = convention.schedule.timestep_at(levels[:-1]).round().long()

    def set_timesteps(steps: int, device: Any = None) -> None:
        scheduler.num_inference_steps, scheduler.timesteps = steps, times.to(device)

    def step(model_output: Tensor, timestep: Tensor, sample: Tensor) -> DDIMSchedulerOutput:
        index = int((scheduler.timesteps == timestep).nonzero()[0])
        sigma, sigma_next = levels[index : index + 1], levels[index + 1 : index + 2]
        x0 = convention.clean(sample, model_output, sigma)
        noise = backbone.path.noise_of(sample, x0, sigma)
        return DDIMSchedulerOutput(backbone.path.mix(x0, noise, sigma_next), x0)

    scheduler.set_timesteps, scheduler.step = set_timesteps, step
    return scheduler


def call_inputs(pipe: Any, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> dict[str, Any]:
    """Arguments of a pipeline's call: the engine's prompt, noise, schedule and size, and the backbone's arguments.

    Raises:
        CapabilityError: for an argument of the backbone's pipeline that this pipeline does not have.
    """
    given: dict[str, Any] = {}
    if isinstance(backbone, PipelineBackbone):
        given = {**backbone.arguments.given, **prompt.arguments}
        for name in given:
            if name not in inspect.signature(type(pipe).__call__).parameters:
                raise CapabilityError(
                    f"{name} was given to the pipeline, and a {type(pipe).__name__} has no such argument",
                    "leave it out",
                )
    noise = open_lane(backbone, process, prompt, seed).latents.x
    height, width = backbone.capabilities.image_size
    return {
        **given,
        "prompt": prompt.text,
        "latents": noise.to(pipe.dtype),
        "num_inference_steps": process.steps,
        "height": height,
        "width": width,
        "output_type": "latent",
    }


def silent(pipe: Any) -> Any:
    """Returns the pipeline with progress bars disabled."""
    pipe.set_progress_bar_config(disable=True)
    return pipe

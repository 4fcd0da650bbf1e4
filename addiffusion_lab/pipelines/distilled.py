"""Samplers with weights distilled for few steps: Latent Consistency Models and SDXL-Turbo."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from addiffusion_env.backbones.base import Backbone, Load
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.backbones.pipelines import PipelineSpec, load_pipeline
from addiffusion_env.engine.lane import open_lane
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import CapabilityError, ConfigError, WeightsError
from addiffusion_env.files import cached
from addiffusion_env.prompts import Prompt, keyed_generator, keyed_noise
from addiffusion_env.scorers.image_scores import ImageScorers
from addiffusion_lab.pipelines.whole import PipelineResult, WholePipeline, counted, silent

LCM = PipelineSpec(
    "lcm",
    "LatentConsistencyModelPipeline",
    "SimianLuo/LCM_Dreamshaper_v7",
    unused=("safety_checker", "feature_extractor", "image_encoder"),
)
TURBO = PipelineSpec(
    "turbo", "StableDiffusionXLPipeline", "stabilityai/sdxl-turbo", unused=("feature_extractor", "image_encoder")
)


@dataclass
class Distilled(WholePipeline):
    """Base class: a pipeline whose weights are loaded in addition to those of the backbone that it is distilled from.

    A network call is 1 NFE; there is no classifier-free guidance.

    Attributes:
        steps: 1 to ``most_steps``.
        weights: hub id or folder of the distilled pipeline.
        spec: class and default weights of the pipeline.
        teacher: registry name and title of the backbone that it is distilled from.
        most_steps: most steps that it was distilled for.
        lacking: what it needs, for errors about missing weights.
    """

    steps: int
    weights: str
    _pipe: Any = field(default=None, init=False, repr=False, compare=False)

    spec: ClassVar[PipelineSpec]
    teacher: ClassVar[tuple[str, str]]
    most_steps: ClassVar[int]
    lacking: ClassVar[str]
    constant: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.most_steps:
            raise ConfigError(
                f"{self.kind}: STEPS must be 1 to {self.most_steps}, got {self.steps}", f"use {self.kind}:4"
            )

    @classmethod
    def needs(cls) -> str:
        """The distilled weights, unless they are cached."""
        return "" if cached(cls.spec.default_id) else f"backbone={cls.teacher[0]} and weights {cls.spec.default_id}"

    def bind(self, backbone: Backbone, scorers: ImageScorers) -> None:
        """Loads the weights, on the backbone's device and in its precision.

        Raises:
            CapabilityError: on another backbone than the one that it is distilled from.
            WeightsError: when the weights are not available or not distilled; the message says what is needed.
        """
        name, title = self.teacher
        if backbone.name != name:
            raise CapabilityError(
                f"{self.name} is distilled from {title}, this backbone is {backbone.name!r}",
                f"use backbone={name}; no such weights of {backbone.name!r} are known",
            )
        if self._pipe is None or self._bound is not backbone:
            self._pipe = self._load(backbone)
        super().bind(backbone, scorers)

    def _load(self, backbone: Backbone) -> Any:
        assert isinstance(backbone, PipelineBackbone)
        load = Load(self.weights, str(backbone.device), str(backbone.dtype).removeprefix("torch."))
        try:
            pipe = load_pipeline(load, offload=backbone.options.offload, spec=self.spec)
        except WeightsError as error:
            raise WeightsError(error.cause, f"{self.lacking}, in a folder or from the hub: {error.remedy}") from error
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        return silent(pipe)

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """A fixed schedule without classifier-free guidance."""
        return replace(super().process(base), guidance_scale=1.0)

    def make(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> PipelineResult:
        """Runs the pipeline."""
        unet = self._pipe.unet
        noise, options = self.inputs(backbone, process, prompt, seed)
        with counted(unet) as tally:
            image = self._pipe(
                prompt.text,
                latents=noise.to(backbone.device, unet.dtype),
                generator=keyed_generator(prompt.prompt_id, seed, self.kind),
                num_inference_steps=self.steps,
                output_type="pt",
                **options,
            ).images[0]
        return PipelineResult(image.float() * 2 - 1, *process.cost(tally.rows))

    @abstractmethod
    def inputs(
        self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """The initial noise, and further arguments of the pipeline's call."""


@dataclass
class LatentConsistency(Distilled):
    """A consistency-distilled SD 1.5 (Luo et al. 2023, arXiv:2310.04378) with diffusers' ``LCMScheduler``.

    It runs at the sd15 backbone's image size, with the same noise. Guidance is an input of the network, at the
    pipeline's default scale of 8.5. 1 to 8 steps are usual.
    """

    weights: str = LCM.default_id

    usage: ClassVar[str] = "lcm:STEPS[,WEIGHTS]"
    example: ClassVar[tuple[str, str]] = ("sd15", "lcm:2,FOLDER")
    spec: ClassVar[PipelineSpec] = LCM
    teacher: ClassVar[tuple[str, str]] = ("sd15", "Stable Diffusion 1.5")
    most_steps: ClassVar[int] = 50  # noise levels used in the distillation; a schedule uses a subset of them
    lacking: ClassVar[str] = "lcm needs consistency-distilled weights"

    def inputs(
        self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """The backbone's own noise and image size."""
        height, width = backbone.capabilities.image_size
        return open_lane(backbone, process, prompt, seed).latents.x, {"height": height, "width": width}


@dataclass
class SDXLTurbo(Distilled):
    """Adversarially distilled SDXL (Sauer et al. 2023, arXiv:2311.17042): Euler ancestral steps, trailing spacing.

    It generates images at the size that it was distilled for (512 pixels), whereas SDXL uses 1024: compare with judges
    that are independent of size.
    """

    weights: str = TURBO.default_id

    usage: ClassVar[str] = "turbo:STEPS[,WEIGHTS]"
    example: ClassVar[tuple[str, str]] = ("sdxl", "turbo:2,FOLDER")
    spec: ClassVar[PipelineSpec] = TURBO
    teacher: ClassVar[tuple[str, str]] = ("sdxl", "SDXL")
    most_steps: ClassVar[int] = 4
    lacking: ClassVar[str] = "turbo needs adversarially distilled weights of SDXL"

    def _load(self, backbone: Backbone) -> Any:
        """The pipeline, if it is a distilled one, which only its scheduler shows, not its weights."""
        pipe = super()._load(backbone)
        kind, spacing = type(pipe.scheduler).__name__, pipe.scheduler.config.get("timestep_spacing")
        if (kind, spacing) != ("EulerAncestralDiscreteScheduler", "trailing"):
            raise WeightsError(
                f"{self.weights} is not distilled to {self.most_steps} steps: its scheduler is a {kind} with {spacing} "
                "spacing, SDXL-Turbo's an EulerAncestralDiscreteScheduler with trailing spacing",
                f"use {TURBO.default_id}",
            )
        return pipe

    def inputs(
        self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """Noise of its own size; no guidance."""
        config = self._pipe.unet.config
        shape = (config.in_channels, config.sample_size, config.sample_size)
        return keyed_noise(prompt.prompt_id, seed, shape)[None], {"guidance_scale": 0.0}

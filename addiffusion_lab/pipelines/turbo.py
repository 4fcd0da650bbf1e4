"""SDXL-Turbo (Sauer et al. 2023, arXiv:2311.17042): SDXL distilled adversarially for one to four steps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.pipelines import PipelineSpec
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import CapabilityError, ConfigError, WeightsError
from addiffusion_env.files import cached
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import fixed_schedule, read_numbers
from addiffusion_env.scorers.image_scores import ImageScorers
from addiffusion_env.seeding import keyed_generator, keyed_noise
from addiffusion_lab.pipelines.whole import PipelineResult, WholePipeline, counted, load_beside

SPEC = PipelineSpec(
    "turbo", "StableDiffusionXLPipeline", "stabilityai/sdxl-turbo", unused=("feature_extractor", "image_encoder")
)
MOST_STEPS = 4


@dataclass
class SDXLTurbo(WholePipeline):
    """Adversarially distilled SDXL (arXiv:2311.17042): Euler ancestral steps, trailing spacing, no guidance.

    Its weights are loaded in addition to those of the sdxl backbone. It generates images at the size that it was
    distilled for (512 pixels), whereas SDXL uses 1024: compare with judges that are independent of size. A call is
    1 NFE.

    Attributes:
        steps: 1 to 4.
        weights: hub id or folder of the distilled ``StableDiffusionXLPipeline``.
    """

    steps: int
    weights: str = SPEC.default_id
    _pipe: Any = field(default=None, init=False, repr=False, compare=False)

    usage: ClassVar[str] = "turbo:STEPS[,WEIGHTS]"
    example: ClassVar[tuple[str, str]] = ("sdxl", "turbo:2,FOLDER")
    constant: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise ConfigError(f"turbo: STEPS must be 1 to {MOST_STEPS}, got {self.steps}", "use turbo:1")

    @classmethod
    def parse(cls, text: str) -> SDXLTurbo:
        """``"1"`` or ``"4,FOLDER"``."""
        return cls(*read_numbers(cls, text, (int, str), ",", optional=1))

    @classmethod
    def needs(cls) -> str:
        """The distilled weights, unless they are cached."""
        return "" if cached(SPEC.default_id) else f"backbone=sdxl and weights {SPEC.default_id}"

    @property
    def name(self) -> str:
        """``turbo:1``, with the weights if they are not the default ones."""
        return f"turbo:{self.steps}" if self.weights == SPEC.default_id else f"turbo:{self.steps},{self.weights}"

    def bind(self, backbone: Backbone, scorers: ImageScorers) -> None:
        """Loads the weights.

        Raises:
            CapabilityError: on another backbone than sdxl.
            WeightsError: when the weights are not available, or are not distilled; the message says what is needed.
        """
        if backbone.name != "sdxl":
            raise CapabilityError(
                f"{self.name} is distilled from SDXL, this backbone is {backbone.name!r}", "use backbone=sdxl"
            )
        if self._pipe is None or self._bound is not backbone:  # weights have the backbone's device and precision
            pipe = load_beside(SPEC, self.weights, backbone, "turbo needs adversarially distilled weights of SDXL")
            self._pipe = distilled(pipe, self.weights)
        super().bind(backbone, scorers)

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """A fixed schedule without classifier-free guidance."""
        return replace(fixed_schedule(base, self.steps), guidance_scale=1.0)

    def make(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> PipelineResult:
        """Runs ``StableDiffusionXLPipeline`` with guidance off."""
        unet = self._pipe.unet
        shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
        noise = keyed_noise(prompt.prompt_id, seed, shape)[None]
        with counted(unet) as tally:
            image = self._pipe(
                prompt.text,
                latents=noise.to(backbone.device, unet.dtype),
                generator=keyed_generator(prompt.prompt_id, seed, "turbo"),
                num_inference_steps=self.steps,
                guidance_scale=0.0,
                output_type="pt",
            ).images[0]
        return PipelineResult(image.float() * 2 - 1, *process.cost(tally.rows))


def distilled(pipe: Any, weights: str) -> Any:
    """Returns the pipeline if it is a distilled one, which only its scheduler shows, not its weights.

    Raises:
        WeightsError: for another scheduler, such as SDXL's.
    """
    kind, spacing = type(pipe.scheduler).__name__, pipe.scheduler.config.get("timestep_spacing")
    if (kind, spacing) != ("EulerAncestralDiscreteScheduler", "trailing"):
        raise WeightsError(
            f"{weights} is not distilled to {MOST_STEPS} steps: its scheduler is a {kind} with {spacing} spacing, "
            "SDXL-Turbo's an EulerAncestralDiscreteScheduler with trailing spacing",
            f"use {SPEC.default_id}",
        )
    return pipe

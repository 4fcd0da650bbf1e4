"""Latent Consistency Models (Luo et al. 2023, arXiv:2310.04378): a network distilled for few-step sampling."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.pipelines import PipelineSpec
from addiffusion_env.engine.lane import open_lane
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import CapabilityError, ConfigError
from addiffusion_env.files import cached
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import fixed_schedule, read_numbers, require_at_least
from addiffusion_env.scorers.image_scores import ImageScorers
from addiffusion_env.seeding import keyed_generator
from addiffusion_lab.pipelines.whole import PipelineResult, WholePipeline, counted, load_beside

SPEC = PipelineSpec(
    "lcm",
    "LatentConsistencyModelPipeline",
    "SimianLuo/LCM_Dreamshaper_v7",
    unused=("safety_checker", "feature_extractor", "image_encoder"),
)
MOST_STEPS = 50
"""Noise levels used in the distillation; a schedule uses a subset of them."""


@dataclass
class LatentConsistency(WholePipeline):
    """A consistency-distilled SD 1.5 (arXiv:2310.04378) with diffusers' ``LCMScheduler``: one network call per step.

    Its weights are loaded in addition to those of the sd15 backbone and run at that backbone's image size, with the
    same noise. Guidance is an input of the network, at the pipeline's default scale of 8.5; a call is 1 NFE.

    Attributes:
        steps: 1 to 50; 1 to 8 are usual.
        weights: hub id or folder of a ``LatentConsistencyModelPipeline``.
    """

    steps: int
    weights: str = SPEC.default_id
    _pipe: Any = field(default=None, init=False, repr=False, compare=False)

    usage: ClassVar[str] = "lcm:STEPS[,WEIGHTS]"
    example: ClassVar[tuple[str, str]] = ("sd15", "lcm:2,FOLDER")
    constant: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least("lcm", "STEPS", self.steps, 1)
        if self.steps > MOST_STEPS:
            raise ConfigError(f"lcm: STEPS must be 1 to {MOST_STEPS}, got {self.steps}", "use lcm:4")

    @classmethod
    def parse(cls, text: str) -> LatentConsistency:
        """``"4"`` or ``"4,FOLDER"``."""
        return cls(*read_numbers(cls, text, (int, str), ",", optional=1))

    @classmethod
    def needs(cls) -> str:
        """The distilled weights, unless they are cached."""
        return "" if cached(SPEC.default_id) else f"backbone=sd15 and weights {SPEC.default_id}"

    @property
    def name(self) -> str:
        """``lcm:4``, with the weights if they are not the default ones."""
        return f"lcm:{self.steps}" if self.weights == SPEC.default_id else f"lcm:{self.steps},{self.weights}"

    def bind(self, backbone: Backbone, scorers: ImageScorers) -> None:
        """Loads the weights.

        Raises:
            CapabilityError: on another backbone than sd15.
            WeightsError: when the weights are not available.
        """
        if backbone.name != "sd15":
            raise CapabilityError(
                f"{self.name} is distilled from Stable Diffusion 1.5, this backbone is {backbone.name!r}",
                f"use backbone=sd15; no consistency-distilled weights of {backbone.name!r} are known",
            )
        if self._pipe is None or self._bound is not backbone:  # weights have the backbone's device and precision
            self._pipe = load_beside(SPEC, self.weights, backbone, "lcm needs consistency-distilled weights")
        super().bind(backbone, scorers)

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """A fixed schedule without classifier-free guidance."""
        return replace(fixed_schedule(base, self.steps), guidance_scale=1.0)

    def make(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> PipelineResult:
        """Runs ``LatentConsistencyModelPipeline``."""
        height, width = backbone.capabilities.image_size
        noise = open_lane(backbone, process, prompt, seed).latents.x
        with counted(self._pipe.unet) as tally:
            image = self._pipe(
                prompt.text,
                latents=noise.to(self._pipe.unet.dtype),
                generator=keyed_generator(prompt.prompt_id, seed, "lcm"),
                num_inference_steps=self.steps,
                height=height,
                width=width,
                output_type="pt",
            ).images[0]
        return PipelineResult(image.float() * 2 - 1, *process.cost(tally.rows))

"""Self-Attention Guidance (Hong et al. 2022, arXiv:2210.00939): steers away from a blurred version of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import require_at_least
from addiffusion_env.scorers.image_scores import ImageScorers
from addiffusion_lab.pipelines.whole import (
    PipelineResult,
    WholePipeline,
    call_inputs,
    counted,
    ddim_pipeline,
    own_processors,
    unet_parts,
)


@dataclass
class SelfAttentionGuidance(WholePipeline):
    """DDIM with self-attention guidance added to classifier-free guidance (arXiv:2210.00939), by diffusers' pipeline.

    A step takes three network calls: two for classifier-free guidance and one on latents whose most attended cells are
    blurred (equation 16). Since one guided evaluation is 1 NFE, a step is 1.5 NFE.

    Attributes:
        steps: steps of the schedule.
        scale: scale of the self-attention guidance, ``s`` of equation 16; 0 disables it.
    """

    steps: int
    scale: float = 0.75

    usage: ClassVar[str] = "sag:STEPS[,SCALE]"
    example: ClassVar[tuple[str, str]] = ("emoji", "sag:2")
    constant: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least("sag", "STEPS", self.steps, 1)
        require_at_least("sag", "SCALE", self.scale, 0)

    def bind(self, backbone: Backbone, scorers: ImageScorers) -> None:
        """Checks the backbone.

        Raises:
            CapabilityError: unless it is Stable Diffusion 1.x or 2.x.
        """
        unet_parts(self.name, backbone)
        super().bind(backbone, scorers)

    def make(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> PipelineResult:
        """Runs ``StableDiffusionSAGPipeline``."""
        from diffusers import StableDiffusionSAGPipeline

        parts = unet_parts(self.name, backbone)
        pipe = ddim_pipeline(StableDiffusionSAGPipeline, backbone, process)
        with counted(parts.unet) as tally, own_processors(parts.unet):
            inputs = call_inputs(pipe, backbone, process, prompt, seed)
            latents = pipe(**inputs, guidance_scale=process.guidance_scale, sag_scale=self.scale).images
        return PipelineResult(backbone.decode(latents.float())[0], *process.cost(tally.rows))

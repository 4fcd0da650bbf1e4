"""Attend-and-Excite (Chefer et al. 2023, arXiv:2301.13826): optimises latents until every subject is attended to."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.engine.regions import phrases_of
from addiffusion_env.errors import CapabilityError
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

PAPER_STEPS = 50
THRESHOLDS = {0: 0.05, 10: 0.5, 20: 0.8}
"""Step (of the paper's 50) -> attention that every subject must have reached (section 3)."""


@dataclass
class AttendAndExcite(WholePipeline):
    """DDIM with Attend-and-Excite on the prompt's subjects (arXiv:2301.13826), by diffusers' pipeline.

    Subjects are the last words of the prompt's phrases: "cup" of "a red cup". The paper's 50 steps, 25 of them with
    updates, are scaled to the requested number of steps. A step takes three network calls, one of them with a gradient,
    and up to 21 more if attention is refined to a threshold. Backward passes do not count as network calls or NFE: the
    record's ``gradient_calls`` counts them, each of the cost of about two network calls, and its seconds include them.

    Attributes:
        steps: steps of the schedule.
    """

    steps: int

    usage: ClassVar[str] = "attend_excite:STEPS"
    example: ClassVar[tuple[str, str]] = ("sd15", "attend_excite:2")
    constant: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least("attend_excite", "STEPS", self.steps, 1)

    def bind(self, backbone: Backbone, scorers: ImageScorers) -> None:
        """Checks the backbone.

        Raises:
            CapabilityError: unless it is Stable Diffusion 1.x or 2.x with cross-attention to read.
        """
        unet_parts(self.name, backbone)
        if backbone.capabilities.attention_grid is None:
            raise CapabilityError(f"backbone {backbone.name!r} has no attention maps for {self.name}", "use sd15")
        super().bind(backbone, scorers)

    def make(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> PipelineResult:
        """Runs ``StableDiffusionAttendAndExcitePipeline``."""
        from diffusers import StableDiffusionAttendAndExcitePipeline

        parts = unet_parts(self.name, backbone)
        pipe = ddim_pipeline(StableDiffusionAttendAndExcitePipeline, backbone, process)
        update, gradients = pipe._update_latent, 0

        def counted_update(latents: Tensor, loss: Tensor, step_size: float) -> Tensor:
            nonlocal gradients
            gradients += 1
            return update(latents, loss, step_size)

        pipe._update_latent = counted_update
        with counted(parts.unet) as tally, own_processors(parts.unet), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.meshgrid")  # from diffusers, harmless
            latents = pipe(
                **call_inputs(pipe, backbone, process, prompt, seed),
                guidance_scale=process.guidance_scale,
                token_indices=subject_positions(backbone, parts.tokenizer, prompt),
                max_iter_to_alter=process.steps // 2,
                thresholds=scaled_thresholds(process.steps),
                attn_res=backbone.capabilities.attention_grid,
            ).images
        image = backbone.decode(latents.detach().float())[0]
        return PipelineResult(image, *process.cost(tally.rows), {"gradient_calls": float(gradients)})


def scaled_thresholds(steps: int) -> Mapping[int, float]:
    """The paper's thresholds scaled to a schedule of ``steps`` steps.

    >>> scaled_thresholds(20)
    {0: 0.05, 4: 0.5, 8: 0.8}
    """
    return {step * steps // PAPER_STEPS: threshold for step, threshold in THRESHOLDS.items()}


def subject_positions(backbone: Backbone, tokenizer: Any, prompt: Prompt) -> list[int]:
    """Positions of the last tokens of the prompt's phrases, in order; all content tokens if no phrase is found."""
    limit = backbone.capabilities.max_tokens - 1  # the end of text
    found, after = [], 0
    for phrase in phrases_of(prompt):
        start = prompt.text.find(phrase, after)
        if start >= 0:
            after = start + len(phrase)
            # Apart from the start and end tokens, the preceding words have as many tokens in the prompt as alone.
            found.append(len(tokenizer(prompt.text[:after]).input_ids) - 2)
    positions = found or list(backbone.encode([prompt.text]).content[0])
    return sorted({position for position in positions if 0 < position < limit}) or [1]

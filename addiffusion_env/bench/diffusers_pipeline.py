"""diffusers' own pipeline on the same weights: all pictures in one batch, in step, decoded at the end."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.flux import packed
from addiffusion_env.bench.bed import Arm, Bed, Done

OWN_PARTS = ("preview", "zero_negative")
"""Fields of a backbone's parts that its pipeline does not have."""

WITHOUT: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    "StableDiffusionXLPipeline": {"add_watermarker": False},
    "FluxPipeline": {},
}
"""Pipeline class -> arguments that leave out what makes no picture."""

EMBEDDED = {"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"}


def pipeline_of(backbone: Any) -> Any:
    """The diffusers pipeline of a backbone's parts; the weights are shared."""
    import diffusers

    kind = backbone.spec.kind if hasattr(backbone, "spec") else "StableDiffusionPipeline"
    names = [item.name for item in fields(backbone.parts) if item.name not in OWN_PARTS]
    pipe = getattr(diffusers, kind)(**{name: getattr(backbone.parts, name) for name in names}, **WITHOUT[kind])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def encoded(backbone: Backbone, texts: list[str]) -> dict[str, Any]:
    """Prompts as a pipeline takes them when they are encoded already; the engine remembers texts, too."""
    names = {**EMBEDDED, **{f"negative_{name}": f"negative_{argument}" for name, argument in EMBEDDED.items()}}
    tensors = backbone.encode(texts).tensors
    return {names[name]: value for name, value in tensors.items() if name in names}


class DiffusersPipeline(Arm):
    """The pipeline at the same batch, text encoded before."""

    name = "diffusers pipeline"
    own_calls = False

    def __init__(self, bed: Bed) -> None:
        self.bed, self.pipe = bed, pipeline_of(bed.backbone)
        self.text = encoded(bed.backbone, [prompt.text for prompt in bed.prompts(bed.lanes)])

    def round(self) -> Done:
        """One batch of pictures."""
        bed, capabilities = self.bed, self.bed.backbone.capabilities
        noise = torch.randn(bed.lanes, *capabilities.latent_shape, device=bed.backbone.device, dtype=self.pipe.dtype)
        height, width = capabilities.image_size
        settings = {"num_inference_steps": bed.steps, "output_type": "pt", "height": height, "width": width}
        if not capabilities.guidance:
            settings |= {"latents": packed(noise), "max_sequence_length": capabilities.max_tokens}
        else:
            settings |= {"latents": noise, "guidance_scale": capabilities.default_guidance}
        self.pipe(**self.text, **settings)
        return Done(bed.lanes * bed.steps, bed.lanes)

"""Stable Diffusion XL: two text encoders, pooled text, and the picture's size as conditioning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from addiffusion_env.backbones.base import Conditioning
from addiffusion_env.backbones.pipelines import FLUX_ONLY, FromPipeline, PipelineOptions, PipelineSpec, set_up
from addiffusion_env.backbones.previews import SDXL_FACTORS, PreviewSpec, load_preview
from addiffusion_env.backbones.schedules import AYS_SDXL
from addiffusion_env.backbones.stable_diffusion import StableDiffusionBackbone, StableDiffusionParts, unet_capabilities
from addiffusion_env.backbones.text import content_positions, tokenize

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class SDXLParts(StableDiffusionParts):
    """The loaded components of a Stable Diffusion XL pipeline.

    Attributes:
        text_encoder_2: ``CLIPTextModelWithProjection``; its projection is the pooled text.
        tokenizer_2: its tokenizer.
        zero_negative: the empty negative prompt is all zeros instead of encoded (``force_zeros_for_empty_prompt``).
    """

    text_encoder_2: Any
    tokenizer_2: Any
    zero_negative: bool


class SDXLBackbone(FromPipeline, StableDiffusionBackbone):
    """Stable Diffusion XL 1.0 (arXiv:2307.01952): 1024x1024, epsilon prediction.

    Conditioning tensors, each also with ``negative_``: ``text`` (B, tokens, 2048) is both encoders' penultimate
    hidden states side by side, ``pooled`` (B, 1280) the second one's projection, ``time_ids`` (B, 6) the original
    size, crop corner and target size.
    """

    name = "sdxl"
    spec = PipelineSpec(
        "sdxl",
        "StableDiffusionXLPipeline",
        "stabilityai/stable-diffusion-xl-base-1.0",
        unused=("feature_extractor", "image_encoder"),
        refused=FLUX_ONLY,
    )
    preview_spec = PreviewSpec("madebyollin/taesdxl", SDXL_FACTORS)
    ays_timesteps = AYS_SDXL
    upcasts = True
    parts: SDXLParts

    @classmethod
    def build(cls, pipe: Any, options: PipelineOptions, preview: str | nn.Module | None) -> Self:
        """See :meth:`FromPipeline.build`."""
        device = pipe._execution_device
        compiled = set_up(pipe, options, pipe.unet)
        capabilities = unet_capabilities(pipe, options, steps=50, guidance=5.0)
        decoder = load_preview(cls.preview_spec, preview, capabilities.latent_shape[0], device, pipe.unet.dtype)
        parts = SDXLParts(
            pipe.unet,
            pipe.vae,
            pipe.text_encoder,
            pipe.tokenizer,
            pipe.scheduler,
            decoder,
            pipe.text_encoder_2,
            pipe.tokenizer_2,
            bool(pipe.config.get("force_zeros_for_empty_prompt", True)),
        )
        return cls(parts, capabilities, options.truncate_prompts, device, compiled)

    @torch.no_grad()
    def encode_uncached(self, prompts: list[str]) -> Conditioning:
        """Both encoders' features of the prompts and of the empty negative prompt; see the class."""
        parts, limit = self.parts, self.capabilities.max_tokens
        features, pooled = [], torch.empty(0)
        for tokenizer, encoder in ((parts.tokenizer, parts.text_encoder), (parts.tokenizer_2, parts.text_encoder_2)):
            ids = tokenize(tokenizer, prompts, limit, self.truncate_prompts)
            empty = tokenize(tokenizer, [""], limit)
            output = encoder(torch.cat([ids, empty]).to(self.device), output_hidden_states=True)
            features.append(output.hidden_states[-2].to(self.dtype))
            pooled = output[0].to(self.dtype)  # of the second encoder in the end
        states = torch.cat(features, dim=-1)
        negative, negative_pooled = states[-1:], pooled[-1:]
        if parts.zero_negative:
            negative, negative_pooled = torch.zeros_like(negative), torch.zeros_like(negative_pooled)
        count = len(prompts)
        height, width = self.capabilities.image_size
        time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=self.dtype, device=self.device)
        tensors = {
            "text": states[:-1],
            "pooled": pooled[:-1],
            "time_ids": time_ids.expand(count, -1),
            "negative_text": negative.expand(count, -1, -1),
            "negative_pooled": negative_pooled.expand(count, -1),
            "negative_time_ids": time_ids.expand(count, -1),
        }
        ids = tokenize(parts.tokenizer, prompts, limit, self.truncate_prompts)
        return Conditioning(tensors, content_positions(parts.tokenizer, ids))

    def denoise(self, x: Tensor, timesteps: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """One call of the UNet, each row at its own timestep."""
        extra = {"text_embeds": tensors["pooled"], "time_ids": tensors["time_ids"]}
        return self.network(
            x, timesteps, encoder_hidden_states=tensors["text"], added_cond_kwargs=extra, return_dict=False
        )[0]

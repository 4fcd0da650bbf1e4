"""Flux: a rectified-flow transformer on packed latents, driven one evaluation at a time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from addiffusion_env.backbones.attention import AttentionStore, captured_joint_attention
from addiffusion_env.backbones.base import Capabilities, Conditioning
from addiffusion_env.backbones.diffusers_backbone import DiffusersBackbone
from addiffusion_env.backbones.paths import RectifiedFlow
from addiffusion_env.backbones.pipelines import FromPipeline, PipelineOptions, PipelineSpec, picture_size, set_up
from addiffusion_env.backbones.previews import FLUX_FACTORS, PREVIEW_SIDE, PreviewSpec, load_preview
from addiffusion_env.backbones.schedules import FlowSchedule
from addiffusion_env.backbones.taps import tap, transformer_middle
from addiffusion_env.backbones.text import content_positions, tokenize

if TYPE_CHECKING:
    from typing_extensions import Self

OWN_SIDE = 1024
"""Pixels a side that Flux is trained for; its config does not say."""


@dataclass(frozen=True)
class FluxParts:
    """The loaded components of a Flux pipeline.

    Attributes:
        transformer: ``FluxTransformer2DModel``.
        vae: ``AutoencoderKL``.
        text_encoder: ``CLIPTextModel``; its pooled output is the second conditioning.
        tokenizer: its tokenizer.
        text_encoder_2: ``T5EncoderModel``; its hidden states are the text.
        tokenizer_2: its tokenizer.
        scheduler: ``FlowMatchEulerDiscreteScheduler``; only its shift is read.
        preview: ``AutoencoderTiny`` that takes scaled latents.
    """

    transformer: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    text_encoder_2: Any
    tokenizer_2: Any
    scheduler: Any
    preview: Any


class FluxBackbone(FromPipeline, DiffusersBackbone):
    """FLUX.1-schnell: 1024x1024, four steps, velocity prediction, no classifier-free guidance.

    Latents are (B, 16, H/8, W/8) outside, as for every backbone; the transformer reads them packed two by two. Sigma
    is the flow's time: 1 is noise, 0 is clean. Conditioning tensors: ``text`` (B, tokens, 4096) of T5, ``pooled``
    (B, 768) of CLIP. FLUX.1-dev works too; it reads ``distilled_guidance`` as an input.

    Args:
        parts: the loaded components, already on their device and in their dtype.
        capabilities: what this checkpoint can do.
        options: ``truncate_prompts`` and ``distilled_guidance`` are read.
        device: where the transformer computes.
        compiled: the compiled transformer, if there is one.
    """

    name = "flux"
    path = RectifiedFlow()
    spec = PipelineSpec(
        "flux",
        "FluxPipeline",
        "black-forest-labs/FLUX.1-schnell",
        unused=("image_encoder", "feature_extractor"),
        refused=("attention_slicing", "channels_last"),  # transformers have neither slices nor convolutions
        auto_dtype="bfloat16",  # as published; activations of T5 and of the transformer leave float16's range
    )
    preview_spec = PreviewSpec("madebyollin/taef1", FLUX_FACTORS)
    upcasts = True

    def __init__(
        self,
        parts: FluxParts,
        capabilities: Capabilities,
        options: PipelineOptions,
        device: torch.device,
        compiled: Any = None,
    ) -> None:
        super().__init__()
        self.parts = parts
        self.denoiser, self.vae, self.previewer = parts.transformer, parts.vae, parts.preview
        self.compiled = compiled
        middle, width = transformer_middle(parts.transformer)
        self.tap = tap(middle)
        self.capabilities = replace(capabilities, feature_dim=width)
        self.options = options
        self.device = device
        self.dtype = parts.transformer.dtype
        self.parametrisation = "flow"
        height, width = capabilities.latent_shape[1:]
        self.schedule = FlowSchedule.from_config(parts.scheduler.config, (height // 2) * (width // 2))
        for item in fields(parts):
            module = getattr(parts, item.name)
            if isinstance(module, nn.Module):
                module.eval().requires_grad_(False)

    @classmethod
    def build(cls, pipe: Any, options: PipelineOptions, preview: str | nn.Module | None) -> Self:
        """See :meth:`FromPipeline.build`."""
        device = pipe._execution_device
        compiled = set_up(pipe, options, pipe.transformer)
        scale = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
        side = picture_size(OWN_SIDE, 2 * scale, options)
        channels, latent = pipe.transformer.config.in_channels // 4, side // scale
        seen = min(side, PREVIEW_SIDE)
        capabilities = Capabilities(
            latent_shape=(channels, latent, latent),
            image_size=(side, side),
            preview_size=(seen, seen),
            guidance=False,
            attention_grid=(latent // 2, latent // 2),
            max_tokens=options.max_sequence_length,
            default_steps=4,
            default_guidance=1.0,
            default_solver="euler_flow",
            default_spacing="trailing",
        )
        decoder = load_preview(cls.preview_spec, preview, channels, device, pipe.transformer.dtype)
        names = [item.name for item in fields(FluxParts) if item.name != "preview"]
        parts = FluxParts(**{name: getattr(pipe, name) for name in names}, preview=decoder)
        return cls(parts, capabilities, options, device, compiled)

    def sigmas(self, steps: int, spacing: str) -> np.ndarray:
        """See :meth:`Backbone.sigmas`; the pipeline's own times, shifted as its scheduler says, are ``trailing``."""
        return self.schedule.sigmas(steps, spacing)

    def timesteps(self, sigma: Tensor) -> Tensor:
        """The transformer's time is sigma itself: (B,) float32."""
        return sigma.float()

    def timestep_position(self, sigma: Tensor) -> Tensor:
        """Sigma is the share of the way that is still ahead."""
        return sigma.clamp(0, 1)

    @torch.no_grad()
    def encode_uncached(self, prompts: list[str]) -> Conditioning:
        """T5's hidden states and CLIP's pooled output; CLIP reads the first 77 tokens, as in the pipeline."""
        parts = self.parts
        ids = tokenize(parts.tokenizer_2, prompts, self.capabilities.max_tokens, self.options.truncate_prompts)
        clip_ids = tokenize(parts.tokenizer, prompts, parts.tokenizer.model_max_length, truncate=True)
        # CLIP first: when offloaded, an encoder's hook sends the one before it in the pipeline away.
        pooled = parts.text_encoder(clip_ids.to(self.device), output_hidden_states=False).pooler_output
        text = parts.text_encoder_2(ids.to(self.device), output_hidden_states=False)[0].to(self.dtype)
        tensors = {"text": text, "pooled": pooled.to(self.dtype)}
        return Conditioning(tensors, content_positions(parts.tokenizer_2, ids))

    def denoise(self, x: Tensor, timesteps: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """One call of the transformer, each row at its own time."""
        height, width = x.shape[-2:]
        guidance = None
        if self.denoiser.config.guidance_embeds:
            guidance = torch.full((len(x),), self.options.distilled_guidance, device=x.device)
        velocity = self.network(
            hidden_states=packed(x),
            timestep=timesteps,
            guidance=guidance,
            pooled_projections=tensors["pooled"],
            encoder_hidden_states=tensors["text"],
            txt_ids=torch.zeros(tensors["text"].shape[1], 3, device=x.device, dtype=x.dtype),
            img_ids=image_ids(height // 2, width // 2, x.device, x.dtype),
            return_dict=False,
        )[0]
        return unpacked(velocity, height, width)

    def captured(self, store: AttentionStore) -> AbstractContextManager[None]:
        """Within it the image-to-text block of joint attention goes into ``store``."""
        return captured_joint_attention(self.denoiser, store)


def packed(x: Tensor) -> Tensor:
    """Latents (B, C, H, W) -> tokens (B, H/2 * W/2, 4 C), a token for each two-by-two block.

    >>> bool((unpacked(packed(torch.arange(64.0).reshape(1, 4, 4, 4)), 4, 4).flatten() == torch.arange(64.0)).all())
    True
    """
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(batch, height // 2 * (width // 2), channels * 4)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, H/2 * W/2, 4 C) -> latents (B, C, H, W); undoes :func:`packed`."""
    batch, _, depth = tokens.shape
    blocks = tokens.reshape(batch, height // 2, width // 2, depth // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(batch, depth // 4, height, width)


def image_ids(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Positions of the image tokens for the rotary embedding: (rows * columns, 3) of zero, row and column."""
    down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(down), down, across], dim=-1).reshape(-1, 3).to(device, dtype)

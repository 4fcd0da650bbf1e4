"""Stable Diffusion 1.x and 2.x in diffusers' classes, driven one evaluation at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from addiffusion_env.backbones.base import Capabilities, Conditioning
from addiffusion_env.backbones.diffusers_backbone import DiffusersBackbone
from addiffusion_env.backbones.paths import VariancePreserving
from addiffusion_env.backbones.schedules import DiscreteSchedule
from addiffusion_env.backbones.text import content_positions, tokenize


@dataclass(frozen=True)
class StableDiffusionParts:
    """The loaded components of a Stable Diffusion pipeline.

    Attributes:
        unet: ``UNet2DConditionModel``.
        vae: ``AutoencoderKL``.
        text_encoder: ``CLIPTextModel``.
        tokenizer: ``CLIPTokenizer``.
        scheduler: any diffusers scheduler of the checkpoint; only its noise levels and parametrisation are read.
        preview: ``AutoencoderTiny`` that takes scaled latents.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    preview: Any


class StableDiffusionBackbone(DiffusersBackbone):
    """A UNet with cross-attention on CLIP text features.

    Args:
        parts: the loaded components, already on their device and in their dtype.
        capabilities: what this checkpoint can do.
        truncate_prompts: drop the end of a prompt that does not fit, instead of refusing it.
    """

    path = VariancePreserving()

    def __init__(self, parts: StableDiffusionParts, capabilities: Capabilities, truncate_prompts: bool = False) -> None:
        super().__init__()
        self.parts = parts
        self.denoiser, self.vae = parts.unet, parts.vae
        self.capabilities = capabilities
        self.truncate_prompts = truncate_prompts
        self.device = next(parts.unet.parameters()).device
        self.dtype = next(parts.unet.parameters()).dtype
        config = parts.scheduler.config
        self.parametrisation = config.prediction_type
        self.schedule = DiscreteSchedule.from_alphas_cumprod(
            parts.scheduler.alphas_cumprod,
            bool(config.get("set_alpha_to_one", False)),
            int(config.get("steps_offset", 0)),
        )
        for module in (parts.unet, parts.vae, parts.text_encoder, parts.preview):
            if isinstance(module, nn.Module):
                module.eval().requires_grad_(False)

    def sigmas(self, steps: int, spacing: str) -> np.ndarray:
        """See :meth:`Backbone.sigmas`; spacings are those of :data:`backbones.schedules.SPACINGS`."""
        return self.schedule.sigmas(steps, spacing)

    def timesteps(self, sigma: Tensor) -> Tensor:
        """The training timestep of each noise level; a fraction between two of them where a landing put it."""
        times = self.schedule.timestep_at(sigma)
        # Whole timesteps as integers, as every diffusers pipeline passes them; the embedding is the same.
        return times.long() if bool((times == times.round()).all()) else times.float()

    def timestep_position(self, sigma: Tensor) -> Tensor:
        """Share of the training timesteps still ahead: 1 at the noisiest, 1 / T at timestep 0."""
        return (self.schedule.timestep_at(sigma) + 1) / self.schedule.train_steps

    @torch.no_grad()
    def encode_uncached(self, prompts: list[str]) -> Conditioning:
        """CLIP's last hidden states of the prompts and of the empty negative prompt: (B, tokens, D) each."""
        ids = tokenize(self.parts.tokenizer, prompts, self.capabilities.max_tokens, self.truncate_prompts)
        empty = tokenize(self.parts.tokenizer, [""], self.capabilities.max_tokens)
        states = self.parts.text_encoder(torch.cat([ids, empty]).to(self.device))[0].to(self.dtype)
        text, negative = states[:-1], states[-1:].expand(len(prompts), -1, -1)
        return Conditioning({"text": text, "negative_text": negative}, content_positions(self.parts.tokenizer, ids))

    def denoise(self, x: Tensor, timesteps: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """One call of the UNet, each row at its own timestep."""
        return self.denoiser(x, timesteps, encoder_hidden_states=tensors["text"], return_dict=False)[0]

    @torch.no_grad()
    def preview(self, x0: Tensor) -> Tensor:
        """The tiny decoder's picture, decoded no larger than ``capabilities.preview_size``."""
        height, width = self.capabilities.preview_size
        scale = self.capabilities.image_size[0] // self.capabilities.latent_shape[1]
        grid = (height // scale, width // scale)
        if grid != tuple(x0.shape[-2:]):
            x0 = nn.functional.adaptive_avg_pool2d(x0, grid)
        return self.parts.preview.decode(x0.to(self.parts.preview.dtype), return_dict=False)[0].float().clamp(-1, 1)

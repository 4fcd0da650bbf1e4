"""Stable Diffusion 1.x and 2.x in diffusers' classes, driven one evaluation at a time."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from addiffusion_env.backbones.base import Capabilities, Conditioning
from addiffusion_env.backbones.diffusers_backbone import DiffusersBackbone
from addiffusion_env.backbones.paths import VariancePreserving
from addiffusion_env.backbones.pipelines import (
    FLUX_ONLY,
    FromPipeline,
    PipelineOptions,
    PipelineSpec,
    picture_size,
    set_up,
)
from addiffusion_env.backbones.previews import PREVIEW_SIDE, SD_FACTORS, PreviewSpec, load_preview
from addiffusion_env.backbones.schedules import AYS_SD15, DiscreteSchedule
from addiffusion_env.backbones.taps import tap, unet_middle
from addiffusion_env.backbones.text import content_positions, tokenize

if TYPE_CHECKING:
    from typing_extensions import Self


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
        device: where the denoiser computes, when its weights are offloaded and lie elsewhere.
        compiled: the compiled UNet, if there is one.

    Attributes:
        ays_timesteps: the family's Align Your Steps; SD 1.5's for families without a list of their own.
    """

    path = VariancePreserving()
    ays_timesteps: ClassVar[tuple[int, ...]] = AYS_SD15

    def __init__(
        self,
        parts: StableDiffusionParts,
        capabilities: Capabilities,
        truncate_prompts: bool = False,
        device: torch.device | None = None,
        compiled: Any = None,
    ) -> None:
        super().__init__()
        self.parts = parts
        self.denoiser, self.vae, self.previewer = parts.unet, parts.vae, parts.preview
        self.compiled = compiled
        middle, width = unet_middle(parts.unet)
        self.tap = None if middle is None else tap(middle)
        self.capabilities = replace(capabilities, feature_dim=width)
        self.truncate_prompts = truncate_prompts
        self.device = device or next(parts.unet.parameters()).device
        self.dtype = parts.unet.dtype
        config = parts.scheduler.config
        self.parametrisation = config.get("prediction_type", "epsilon")
        self.schedule = DiscreteSchedule.from_alphas_cumprod(
            parts.scheduler.alphas_cumprod,
            lands_on_zero(parts.scheduler),
            int(config.get("steps_offset", 0)),
            self.ays_timesteps,
        )
        for item in fields(parts):
            module = getattr(parts, item.name)
            if isinstance(module, nn.Module):
                module.eval().requires_grad_(False)

    def sigmas(self, steps: int, spacing: str) -> np.ndarray:
        """See :meth:`Backbone.sigmas`; spacings are those of :data:`backbones.schedules.VP_SPACINGS`."""
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
        return self.network(x, timesteps, encoder_hidden_states=tensors["text"], return_dict=False)[0]


def lands_on_zero(scheduler: Any) -> bool:
    """Whether a diffusers scheduler's last step ends at sigma 0, or at the cleanest training level."""
    # Configs carry other schedulers' settings along: only those that the class itself reads count.
    known = inspect.signature(type(scheduler).__init__).parameters
    if "final_sigmas_type" in known:
        return scheduler.config.get("final_sigmas_type", "zero") == "zero"
    return "set_alpha_to_one" not in known or bool(scheduler.config.get("set_alpha_to_one", True))


def unet_capabilities(pipe: Any, options: PipelineOptions, steps: int, guidance: float) -> Capabilities:
    """What a loaded Stable Diffusion pipeline can do.

    Args:
        pipe: any pipeline with ``unet``, ``vae`` and ``tokenizer``.
        options: for another size of picture.
        steps: reference number of steps.
        guidance: the guidance scale that goes with it.

    Raises:
        ConfigError: for an impossible size of picture.
    """
    config = pipe.unet.config
    scale = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    # Each block but the last halves the latents; their sides must come out even on the way up.
    side = picture_size(config.sample_size * scale, scale * 2 ** (len(config.down_block_types) - 1), options)
    preview = min(side, PREVIEW_SIDE)
    return Capabilities(
        latent_shape=(config.in_channels, side // scale, side // scale),
        image_size=(side, side),
        preview_size=(preview, preview),
        guidance=True,
        attention_grid=cross_attention_grid(config.down_block_types, side // scale),
        max_tokens=pipe.tokenizer.model_max_length,
        default_steps=steps,
        default_guidance=guidance,
    )


def cross_attention_grid(down_blocks: Sequence[str], side: int) -> tuple[int, int] | None:
    """The coarsest resolution at which a UNet's down blocks look at the text: where maps follow objects, not texture.

    >>> cross_attention_grid(["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], 64)  # Stable Diffusion 1.5
    (16, 16)
    >>> cross_attention_grid(["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], 128)  # SDXL
    (32, 32)
    """
    levels = [level for level, kind in enumerate(down_blocks) if "CrossAttn" in kind]
    return (side >> levels[-1], side >> levels[-1]) if levels else None


class StableDiffusionPipelineBackbone(FromPipeline, StableDiffusionBackbone):
    """Stable Diffusion 1.x and 2.x from diffusers' ``StableDiffusionPipeline``.

    Attributes:
        default_steps: reference number of steps.
        default_guidance: the guidance scale that goes with it.
    """

    preview_spec = PreviewSpec("madebyollin/taesd", SD_FACTORS)
    default_steps: ClassVar[int] = 50
    default_guidance: ClassVar[float] = 7.5

    @classmethod
    def build(cls, pipe: Any, options: PipelineOptions, preview: str | nn.Module | None) -> Self:
        """See :meth:`FromPipeline.build`."""
        device = pipe._execution_device
        compiled = set_up(pipe, options, pipe.unet)
        capabilities = unet_capabilities(pipe, options, cls.default_steps, cls.default_guidance)
        decoder = load_preview(cls.preview_spec, preview, capabilities.latent_shape[0], device, pipe.unet.dtype)
        parts = StableDiffusionParts(pipe.unet, pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.scheduler, decoder)
        return cls(parts, capabilities, options.truncate_prompts, device, compiled)


def stable_diffusion_spec(backbone: str, default_id: str) -> PipelineSpec:
    """The spec of a ``StableDiffusionPipeline``, its safety checker left out."""
    return PipelineSpec(
        backbone,
        "StableDiffusionPipeline",
        default_id,
        unused=("safety_checker", "feature_extractor", "image_encoder"),
        refused=FLUX_ONLY,
    )

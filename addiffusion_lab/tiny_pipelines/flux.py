"""Flux.1, Flux.2 and Chroma."""

from __future__ import annotations

from typing import Any

import diffusers

from addiffusion_lab.tiny_pipelines import parts
from addiffusion_lab.tiny_pipelines.builder import Builder
from addiffusion_lab.tiny_pipelines.parts import FLUX_VAE, network

SIZES: dict[str, Any] = {"num_layers": 1, "attention_head_dim": 16}
"""Sizes of Flux' transformer and its kin other than those of :data:`parts.SIZES`."""


def scheduler(**settings: Any) -> Any:
    """The scheduler of flow matching."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)


def flux_transformer(in_channels: int = 16, out_channels: int | None = 16, **changes: Any) -> Any:
    """A Flux transformer; its channels are four per latent channel, those of conditions included."""
    settings = {**SIZES, "guidance_embeds": True, **changes}
    return network(diffusers.FluxTransformer2DModel, in_channels=in_channels, out_channels=out_channels, **settings)


def flux(cls: str = "FluxPipeline", **changes: Any) -> Any:
    """A pipeline with the components of Flux.1-dev."""
    components = {
        **parts.clip(width=32),
        "scheduler": scheduler(use_dynamic_shifting=True),
        "vae": parts.autoencoder(**FLUX_VAE),
        **parts.text(parts.t5, parts.t5_tokenizer(), "_2"),
        "transformer": flux_transformer(),
    }
    return getattr(diffusers, cls)(**{**components, **changes})


def flux2_transformer(joint: int, guidance_embeds: bool) -> Any:
    """A Flux.2 transformer."""
    return network(
        diffusers.Flux2Transformer2DModel,
        in_channels=16,
        out_channels=None,
        axes_dims_rope=(4, 4, 4, 4),
        joint_attention_dim=joint,
        guidance_embeds=guidance_embeds,
        **SIZES,
    )


def flux2() -> Any:
    """Flux.2-dev: text from three layers of a Mistral 3."""
    return diffusers.Flux2Pipeline(
        scheduler=scheduler(use_dynamic_shifting=True),
        vae=parts.flux2_autoencoder(),
        **parts.text(parts.mistral3, parts.qwen_tokenizer()),
        transformer=flux2_transformer(48, guidance_embeds=True),
    )


def flux2_klein(cls: str = "Flux2KleinPipeline") -> Any:
    """Flux.2-klein: text from three layers of a Qwen 3, guidance by a second call."""
    return getattr(diffusers, cls)(
        scheduler=scheduler(use_dynamic_shifting=True),
        vae=parts.flux2_autoencoder(),
        **parts.text(parts.qwen3, parts.qwen_tokenizer()),
        transformer=flux2_transformer(48, guidance_embeds=False),
    )


def chroma(cls: str = "ChromaPipeline") -> Any:
    """Chroma: Flux without CLIP, guidance by a second call."""
    return getattr(diffusers, cls)(
        scheduler=scheduler(use_dynamic_shifting=True),
        vae=parts.autoencoder(**FLUX_VAE),
        **parts.text(parts.t5, parts.t5_tokenizer()),
        transformer=network(
            diffusers.ChromaTransformer2DModel,
            in_channels=16,
            out_channels=None,
            approximator_num_channels=8,
            approximator_hidden_dim=32,
            approximator_layers=1,
            **SIZES,
        ),
    )


TEXT = {"max_sequence_length": 32}
CHAT = {"max_sequence_length": 160, "text_encoder_out_layers": (1, 2, 3)}
BUILDERS = {
    "flux": Builder(flux, (1,), {"guidance_scale": 3.5, **TEXT}, fast=True),
    "flux_true_cfg": Builder(
        flux, (1, 1), {"true_cfg_scale": 3.0, "negative_prompt": "a cat", **TEXT}, guidance="true_cfg_scale"
    ),
    "flux2": Builder(flux2, (1,), {"guidance_scale": 3.0, **CHAT}),
    "flux2_klein": Builder(flux2_klein, (1, 1), {"guidance_scale": 3.0, **CHAT}, fast=True),
    "chroma": Builder(chroma, (1, 1), {"guidance_scale": 3.0, **TEXT}),
}

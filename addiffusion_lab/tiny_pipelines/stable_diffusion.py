"""Stable Diffusion 1.5, 2.1, XL and 3."""

from __future__ import annotations

from typing import Any

import diffusers

from addiffusion_lab.tiny_pipelines import parts
from addiffusion_lab.tiny_pipelines.builder import Builder


def parts_15(scheduler: str = "DDIMScheduler", unet: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """Components of Stable Diffusion 1.5; ``settings`` are the scheduler's."""
    return {
        **parts.clip(),
        "vae": parts.autoencoder(),
        "unet": parts.unet(**(unet or {})),
        "scheduler": getattr(diffusers, scheduler)(**parts.SD_NOISE, **settings),
        "safety_checker": None,
        "feature_extractor": None,
    }


def sd15(cls: str = "StableDiffusionPipeline", **settings: Any) -> Any:
    """A pipeline with the components of Stable Diffusion 1.5."""
    return getattr(diffusers, cls)(**parts_15(**settings), requires_safety_checker=False)


def parts_xl(**unet: Any) -> dict[str, Any]:
    """Components of Stable Diffusion XL; ``unet`` are further settings of its UNet."""
    noise = {key: parts.SD_NOISE[key] for key in ("beta_start", "beta_end", "beta_schedule", "steps_offset")}
    return {
        **parts.clip(),
        **parts.clip("_2", projection=True),
        "vae": parts.autoencoder(scaling_factor=0.13025),
        "unet": parts.unet(
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
            use_linear_projection=True,
            **unet,
        ),
        "scheduler": diffusers.EulerDiscreteScheduler(**noise),
    }


def sdxl(cls: str = "StableDiffusionXLPipeline", **changes: Any) -> Any:
    """A pipeline with the components of Stable Diffusion XL."""
    return getattr(diffusers, cls)(**{**parts_xl(), **changes})


SD3_SIZES: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}


def sd3(cls: str = "StableDiffusion3Pipeline", **changes: Any) -> Any:
    """A pipeline with the components of Stable Diffusion 3.5."""
    return getattr(diffusers, cls)(
        **parts.clip(projection=True),
        **parts.clip("_2", projection=True),
        transformer=parts.network(diffusers.SD3Transformer2DModel, **SD3_SIZES),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=parts.autoencoder(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False),
        **parts.text(parts.t5, parts.t5_tokenizer(), "_3"),
        **changes,
    )


def lcm() -> Any:
    """A latent consistency model; its UNet takes the guidance scale as an input."""
    return sd15("LatentConsistencyModelPipeline", scheduler="LCMScheduler", unet={"time_cond_proj_dim": 32})


UNET: dict[str, Any] = {"denoisers": ("unet",)}
BUILDERS = {
    "sd15": Builder(sd15, (2,), {"guidance_scale": 3.0}, fast=True, **UNET),
    "sd21": Builder(lambda: sd15(prediction_type="v_prediction"), (2,), {"guidance_scale": 3.0}, **UNET),
    "lcm": Builder(lcm, (1,), {"guidance_scale": 3.0}, **UNET),
    "sdxl": Builder(sdxl, (2,), {"guidance_scale": 3.0}, fast=True, **UNET),
    "sd3": Builder(sd3, (2,), {"guidance_scale": 3.0, "max_sequence_length": 32}, fast=True),
}

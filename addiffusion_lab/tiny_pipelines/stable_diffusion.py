"""Stable Diffusion 1.5, 2.1, XL and 3."""

from __future__ import annotations

from typing import Any

import diffusers

from addiffusion_lab.tiny_pipelines import parts
from addiffusion_lab.tiny_pipelines.builder import Builder


def clip(width: int = 16, projection: bool = False) -> tuple[Any, Any]:
    """Returns a CLIP tokenizer and its text encoder."""
    tokenizer = parts.clip_tokenizer()
    return tokenizer, parts.clip_text_model(tokenizer, width, projection)


def parts_15(scheduler: str = "DDIMScheduler", unet: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """Components of Stable Diffusion 1.5; ``settings`` are the scheduler's."""
    tokenizer, text_encoder = clip()
    return {
        "vae": parts.autoencoder(),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
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
    tokenizer, text_encoder = clip()
    tokenizer_2, text_encoder_2 = clip(projection=True)
    noise = {key: parts.SD_NOISE[key] for key in ("beta_start", "beta_end", "beta_schedule", "steps_offset")}
    return {
        "vae": parts.autoencoder(scaling_factor=0.13025),
        "text_encoder": text_encoder,
        "text_encoder_2": text_encoder_2,
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer_2,
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
    "sample_size": 8,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 32,
    "pos_embed_max_size": 8,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}


def parts_3() -> dict[str, Any]:
    """Components of Stable Diffusion 3.5."""
    tokenizer, text_encoder = clip(projection=True)
    tokenizer_2, text_encoder_2 = clip(projection=True)
    tokenizer_3 = parts.t5_tokenizer()
    return {
        "transformer": diffusers.SD3Transformer2DModel(**SD3_SIZES),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": parts.autoencoder(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "text_encoder_2": text_encoder_2,
        "tokenizer_2": tokenizer_2,
        "text_encoder_3": parts.t5(tokenizer_3),
        "tokenizer_3": tokenizer_3,
    }


def sd3(cls: str = "StableDiffusion3Pipeline", **changes: Any) -> Any:
    """A pipeline with the components of Stable Diffusion 3.5."""
    return getattr(diffusers, cls)(**{**parts_3(), **changes})


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

"""Full-size pipelines with random weights, from the public configs: nothing is downloaded, and speed needs no training.

Only the tokenizers are small (letters only); the text windows and the text encoders have their real sizes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from addiffusion_lab.tiny_pipelines import parts as tiny
from addiffusion_lab.tiny_pipelines.backbones import BUILDERS

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
WIDE = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}


def tokenizer() -> Any:
    """A CLIP tokenizer of letters."""
    return tiny.clip_tokenizer()


def on_cpu(scheduler_class: Any, **config: Any) -> Any:
    """A scheduler, whose tables are created on the CPU independent of the weights' device."""
    with torch.device("cpu"):
        return scheduler_class(**config)


def clip_text(size: dict[str, int], projection: bool = False) -> Any:
    """A CLIP text model of a public size."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(**size, projection_dim=size["hidden_size"])
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def sd15() -> Any:
    """Stable Diffusion 1.5: 0.86 billion parameters in the UNet."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    return StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE),
        text_encoder=clip_text(CLIP_L),
        tokenizer=tokenizer(),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        scheduler=on_cpu(DDIMScheduler, **tiny.SD_NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd21() -> Any:
    """Stable Diffusion 2.1: 0.87 billion parameters in the UNet, velocity prediction at 768 pixels."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    return StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE),
        text_encoder=clip_text(CLIP_H),
        tokenizer=tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=96,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        ),
        scheduler=on_cpu(DDIMScheduler, **tiny.SD_NOISE, prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    """Stable Diffusion XL: 2.6 billion parameters in the UNet."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(**VAE, scaling_factor=0.13025),
        text_encoder=clip_text(CLIP_L),
        text_encoder_2=clip_text(CLIP_G, projection=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        scheduler=on_cpu(DDIMScheduler, **tiny.SD_NOISE),
        add_watermarker=False,
    )


def flux() -> Any:
    """FLUX.1-schnell: 12 billion parameters in the transformer, 5 in T5."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    return FluxPipeline(
        vae=AutoencoderKL(**VAE, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip_text(CLIP_L),
        text_encoder_2=T5EncoderModel(T5Config(**T5_XXL, feed_forward_proj="gated-gelu")),
        tokenizer=tokenizer(),
        tokenizer_2=tiny.t5_tokenizer(),
        transformer=FluxTransformer2DModel(),
        scheduler=on_cpu(FlowMatchEulerDiscreteScheduler),
    )


def sd35() -> Any:
    """Stable Diffusion 3.5 medium: 2.2 billion parameters in the transformer, 4.8 in T5."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import T5Config, T5EncoderModel

    return StableDiffusion3Pipeline(
        vae=AutoencoderKL(**VAE, **WIDE, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip_text(CLIP_L, projection=True),
        text_encoder_2=clip_text(CLIP_G, projection=True),
        text_encoder_3=T5EncoderModel(T5Config(**T5_XXL, feed_forward_proj="gated-gelu")),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        tokenizer_3=tiny.t5_tokenizer(),
        transformer=SD3Transformer2DModel(
            num_layers=24,
            num_attention_heads=24,
            attention_head_dim=64,
            caption_projection_dim=1536,
            joint_attention_dim=4096,
            pooled_projection_dim=2048,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        ),
        scheduler=on_cpu(FlowMatchEulerDiscreteScheduler, shift=3.0),
    )


def z_image() -> Any:
    """Z-Image-Turbo: 6.2 billion parameters in the transformer, 4 in the Qwen3 that encodes the prompt."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    from addiffusion_lab.tiny_pipelines import parts

    return ZImagePipeline(
        vae=AutoencoderKL(**VAE, **WIDE, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=Qwen3Model(Qwen3Config(**QWEN3_4B)),
        tokenizer=parts.qwen_tokenizer(),
        transformer=ZImageTransformer2DModel(),
        scheduler=on_cpu(FlowMatchEulerDiscreteScheduler, shift=3.0),
    )


FULL = {"sd15": sd15, "sd21": sd21, "sdxl": sdxl, "flux": flux, "sd35": sd35, "z_image": z_image}


def build(name: str, size: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """A pipeline and the tiny decoder of its latents, random weights, on ``device`` in ``dtype``.

    Args:
        name: a key of :data:`FULL`.
        size: ``full``, or ``tiny`` for 16x16 images.
        device: device that the weights are created on, so that 12 billion of them never pass through host memory.
        dtype: precision of the weights.
    """
    from diffusers import AutoencoderTiny

    channels = 16 if name in ("flux", "sd35", "z_image") else 4
    if size == "tiny":
        pipe, preview = BUILDERS[name](Path(tempfile.mkdtemp())), tiny.tiny_autoencoder(channels)
    else:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with device:
                pipe, preview = FULL[name](), AutoencoderTiny(latent_channels=channels)
        finally:
            torch.set_default_dtype(before)
    for part in (*pipe.components.values(), preview):
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, dtype), preview.to(device, dtype)

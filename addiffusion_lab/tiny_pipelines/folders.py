"""Tiny pipelines with random weights in the real classes and the hub's folder format, built offline in milliseconds.

`python -m addiffusion_env check sd15` and the tests run the backbones' contracts on them. Latents are 8x8 and images
16x16, so that a whole episode on a CPU takes a second; everything else (two text encoders, joint attention, packing,
schedulers) is as in the real models of these classes.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch

WORDS = ("a", "photo", "of", "red", "cup", "dog", "left", "and", "the", "cat", "on", "sofa")
SD_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def clip_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer of letters, window 77."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = json.dumps({token: index for index, token in enumerate(tokens)})
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def t5_tokenizer() -> Any:
    """A T5 tokenizer of a few words and all letters."""
    from transformers import T5TokenizerFast  # type: ignore[attr-defined]

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(f"▁{word}", -1.0) for word in WORDS] + [(letter, -5.0) for letter in string.ascii_lowercase]
    return T5TokenizerFast(vocab=pieces, extra_ids=0)


def clip_text_model(tokenizer: Any, width: int = 16, projection: bool = False) -> Any:
    """A two-layer CLIP text model."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def autoencoder(latent_channels: int = 4, scaling_factor: float = 0.18215, shift_factor: float | None = None) -> Any:
    """An ``AutoencoderKL`` that doubles the sides of the latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        sample_size=16,
    )


def tiny_autoencoder(latent_channels: int = 4) -> Any:
    """An ``AutoencoderTiny`` that doubles the sides of the latents."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        latent_channels=latent_channels,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )


def unet(**changes: Any) -> Any:
    """A UNet with cross-attention at 8x8 and 4x4."""
    from diffusers import UNet2DConditionModel

    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "norm_num_groups": 8,
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**{**config, **changes})


def stable_diffusion(folder: Path, prediction_type: str = "epsilon") -> Any:
    """A ``StableDiffusionPipeline``, saved to ``folder``."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder / "tokenizer")
    pipe = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip_text_model(tokenizer),
        tokenizer=tokenizer,
        unet=unet(),
        scheduler=DDIMScheduler(**SD_NOISE, prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return saved(pipe, folder)


def latent_consistency(folder: Path) -> Any:
    """A ``LatentConsistencyModelPipeline``, saved to ``folder``; its UNet takes the guidance scale as an input."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    torch.manual_seed(7)
    tokenizer = clip_tokenizer(folder / "tokenizer")
    pipe = LatentConsistencyModelPipeline(
        vae=autoencoder(),
        text_encoder=clip_text_model(tokenizer),
        tokenizer=tokenizer,
        unet=unet(time_cond_proj_dim=32),
        scheduler=LCMScheduler(**SD_NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return saved(pipe, folder)


def sdxl_turbo(folder: Path) -> Any:
    """A ``StableDiffusionXLPipeline`` with SDXL-Turbo's scheduler, saved to ``folder``."""
    from diffusers import EulerAncestralDiscreteScheduler

    pipe = stable_diffusion_xl(folder)
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    return saved(pipe, folder)


def stable_diffusion_xl(folder: Path) -> Any:
    """A ``StableDiffusionXLPipeline``, saved to ``folder``."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    torch.manual_seed(1)
    tokenizer = clip_tokenizer(folder / "tokenizer")
    pipe = StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=clip_text_model(tokenizer),
        text_encoder_2=clip_text_model(tokenizer, projection=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet(
            cross_attention_dim=32,  # both encoders side by side
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
        ),
        scheduler=DDIMScheduler(**SD_NOISE),
        add_watermarker=False,
    )
    return saved(pipe, folder)


def flux_transformer(guidance_embeds: bool = False) -> Any:
    """A Flux transformer with two double-stream layers and one single-stream layer."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )


def flux(folder: Path, **scheduler: Any) -> Any:
    """A ``FluxPipeline``, saved to ``folder``; ``scheduler`` is passed to its scheduler."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(2)
    tokenizer, tokenizer_2 = clip_tokenizer(folder / "tokenizer"), t5_tokenizer()
    text: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    pipe = FluxPipeline(
        vae=autoencoder(16, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip_text_model(tokenizer, width=32),
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=len(tokenizer_2), **text)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        transformer=flux_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
    )
    # FluxPipeline's default is 128 latents per side.
    pipe.default_sample_size = 8  # type: ignore[attr-defined]
    return saved(pipe, folder)


def saved(pipe: Any, folder: Path) -> Any:
    """Saves a pipeline and returns it, without progress bars or dropout."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe

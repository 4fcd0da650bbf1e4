"""PixArt, Lumina, CogView, Hunyuan-DiT, AuraFlow, Sana, Bria, Z-Image and Qwen-Image."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from addiffusion_lab.tiny_pipelines import parts
from addiffusion_lab.tiny_pipelines.builder import Builder
from addiffusion_lab.tiny_pipelines.flux import SIZES, TEXT, scheduler
from addiffusion_lab.tiny_pipelines.parts import FLUX_VAE, network

CFG: dict[str, Any] = {"guidance_scale": 3.0}
NOISE = {key: parts.SD_NOISE[key] for key in ("beta_start", "beta_end", "beta_schedule")}


Z_IMAGE_SIZES: dict[str, Any] = {"in_channels": 16, "n_layers": 1, "n_kv_heads": 2, "axes_lens": [256, 32, 32]}
QWEN_IMAGE_SIZES: dict[str, Any] = {
    "in_channels": 16,
    "attention_head_dim": 16,
    "joint_attention_dim": 16,
    "axes_dims_rope": (8, 4, 4),
}


COGVIEW4_SHIFT: dict[str, Any] = {
    "base_shift": 0.25,
    "max_shift": 0.75,
    "base_image_seq_len": 256,
    "use_dynamic_shifting": True,
    "time_shift_type": "linear",
}


def z_image(cls: str = "ZImagePipeline", **changes: Any) -> Any:
    """A pipeline with the components of Z-Image, whose transformer takes lists."""
    return getattr(diffusers, cls)(
        scheduler=scheduler(shift=3.0),
        vae=parts.autoencoder(16, **FLUX_VAE),
        **parts.text(parts.qwen3, parts.qwen_tokenizer()),
        transformer=network(diffusers.ZImageTransformer2DModel, **Z_IMAGE_SIZES),
        **changes,
    )


def pixart(cls: str = "PixArtSigmaPipeline") -> Any:
    """PixArt: a transformer with cross-attention on T5 that also predicts the variance."""
    return getattr(diffusers, cls)(
        **parts.text(parts.t5, parts.t5_tokenizer()),
        vae=parts.autoencoder(),
        transformer=network(
            diffusers.PixArtTransformer2DModel, out_channels=8, caption_channels=32, use_additional_conditions=False
        ),
        scheduler=diffusers.DDIMScheduler(),
    )


def lumina() -> Any:
    """Lumina-Next: guidance on three of four channels, negated outputs."""
    transformer = network(diffusers.LuminaNextDiT2DModel, hidden_size=16)
    torch.nn.init.normal_(transformer.pad_token, std=0.1)  # uninitialised memory
    return diffusers.LuminaPipeline(
        transformer=transformer,
        scheduler=scheduler(),
        vae=parts.autoencoder(levels=4, scaling_factor=0.13025),
        **parts.text(parts.gemma, parts.gemma_tokenizer()),
    )


def lumina2() -> Any:
    """Lumina 2: norm-rescaled guidance by a second call, negated outputs."""
    return diffusers.Lumina2Pipeline(
        transformer=network(
            diffusers.Lumina2Transformer2DModel,
            num_layers=1,
            axes_lens=(128, 32, 32),
        ),
        scheduler=scheduler(shift=6.0),
        vae=parts.autoencoder(levels=4, **FLUX_VAE),
        **parts.text(parts.gemma2, parts.gemma_tokenizer()),
    )


def cogview3() -> Any:
    """CogView 3 Plus: joint attention on T5, diffusion with noise prediction."""
    return diffusers.CogView3PlusPipeline(
        **parts.text(parts.t5, parts.t5_tokenizer()),
        vae=parts.autoencoder(scaling_factor=0.13025),
        transformer=network(diffusers.CogView3PlusTransformer2DModel),
        scheduler=diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing"),
    )


def cogview4() -> Any:
    """CogView 4: the transformer's timestep is the one before the shift."""
    return diffusers.CogView4Pipeline(
        **parts.text(
            parts.glm, parts.qwen_tokenizer("[gMASK]", "<sop>", starts_with=("[gMASK]", "<sop>"), padding_side="left")
        ),
        vae=parts.autoencoder(),
        transformer=network(diffusers.CogView4Transformer2DModel, text_embed_dim=16, rope_axes_dim=(32, 32)),
        scheduler=scheduler(**COGVIEW4_SHIFT),
    )


def qwen_image(cls: str = "QwenImagePipeline", **changes: Any) -> Any:
    """A pipeline with the components of Qwen-Image; guidance by a second call, rescaled to the prompt's norm."""
    return getattr(diffusers, cls)(
        scheduler=scheduler(use_dynamic_shifting=True),
        vae=parts.qwen_autoencoder(),
        **parts.text(parts.qwen25_vl, parts.qwen_tokenizer()),
        transformer=network(diffusers.QwenImageTransformer2DModel, **QWEN_IMAGE_SIZES),
        **changes,
    )


def hunyuan_dit(cls: str = "HunyuanDiTPipeline") -> Any:
    """Hunyuan-DiT: cross-attention on BERT and T5 side by side, rotary tables shared by all rows."""
    tokenizer, tokenizer_2 = parts.bert_tokenizer(), parts.t5_tokenizer()
    return getattr(diffusers, cls)(
        vae=parts.autoencoder(scaling_factor=0.13025),
        text_encoder=parts.bert(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=parts.t5(tokenizer_2),
        tokenizer_2=tokenizer_2,
        transformer=network(
            diffusers.HunyuanDiT2DModel,
            patch_size=2,
            num_layers=4,
            hidden_size=16,
            cross_attention_dim_t5=32,
            pooled_projection_dim=4,
        ),
        scheduler=diffusers.DDPMScheduler(**NOISE, prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def bria() -> Any:
    """Bria 3.2: Flux's joint attention with guidance in one call; latents packed four to a token."""
    return diffusers.BriaPipeline(
        transformer=network(diffusers.BriaTransformer2DModel, in_channels=16, **SIZES),
        scheduler=scheduler(),
        vae=parts.autoencoder(shift_factor=0.0),
        **parts.text(parts.t5, parts.t5_tokenizer()),
    )


def aura_flow() -> Any:
    """AuraFlow."""
    return diffusers.AuraFlowPipeline(
        **parts.text(parts.t5, parts.t5_tokenizer(), unified=True),
        vae=parts.autoencoder(scaling_factor=0.13025),
        transformer=network(
            diffusers.AuraFlowTransformer2DModel,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            pos_embed_max_size=64,
        ),
        scheduler=scheduler(shift=1.73),
    )


def sana(cls: str = "SanaPipeline", steps: Any = None, **changes: Any) -> Any:
    """Sana: linear attention, cross-attention on Gemma 2, a deep autoencoder."""
    return getattr(diffusers, cls)(
        **parts.text(parts.gemma2, parts.gemma_tokenizer()),
        vae=parts.deep_autoencoder(),
        transformer=network(
            diffusers.SanaTransformer2DModel,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            caption_channels=16,
            **changes,
        ),
        scheduler=steps or scheduler(shift=3.0),
    )


PIXART: dict[str, Any] = {**CFG, **TEXT, "clean_caption": False, "use_resolution_binning": False}
SANA: dict[str, Any] = {
    **CFG,
    "max_sequence_length": 64,
    "use_resolution_binning": False,
    "complex_human_instruction": None,
}
QWEN: dict[str, Any] = {"guidance": "true_cfg_scale"}
BUILDERS = {
    "z_image": Builder(z_image, (2,), {**CFG, "max_sequence_length": 64}, fast=True),
    "pixart_alpha": Builder(lambda: pixart("PixArtAlphaPipeline"), (2,), PIXART),
    "pixart_sigma": Builder(pixart, (2,), PIXART),
    "lumina": Builder(lumina, (2,), {**CFG, "clean_caption": False}, (64, 64)),
    "lumina2": Builder(lumina2, (1, 1), {**CFG, "max_sequence_length": 128}, (64, 64)),
    "cogview3": Builder(cogview3, (2,), {**CFG, **TEXT}),
    "cogview4": Builder(cogview4, (1, 1), CFG),
    "qwen_image": Builder(qwen_image, (1,), {"true_cfg_scale": 1.0}, **QWEN),
    "qwen_image_cfg": Builder(
        qwen_image, (1, 1), {"true_cfg_scale": 3.0, "negative_prompt": "a cat"}, fast=True, **QWEN
    ),
    "hunyuan_dit": Builder(hunyuan_dit, (2,), {**CFG, "use_resolution_binning": False}),
    "bria": Builder(bria, (2,), {**CFG, **TEXT}, (16, 16)),
    "aura_flow": Builder(aura_flow, (2,), {**CFG, **TEXT}),
    "sana": Builder(sana, (2,), SANA, (32, 32)),
}

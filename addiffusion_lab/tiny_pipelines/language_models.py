"""Pipelines with a language model as text encoder: Krea 2, Nucleus, FIBO, Ovis, PRX, OmniGen, ERNIE and more."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from addiffusion_lab.tiny_pipelines import parts
from addiffusion_lab.tiny_pipelines.builder import Builder
from addiffusion_lab.tiny_pipelines.diffusion_transformers import CFG
from addiffusion_lab.tiny_pipelines.flux import SIZES, scheduler
from addiffusion_lab.tiny_pipelines.parts import FLUX_VAE, network

SIZES_16 = {**SIZES, "joint_attention_dim": 16}


def krea2() -> Any:
    """Krea 2: several layers of a Qwen 3 VL per token; guidance adds one."""
    return diffusers.Krea2Pipeline(
        scheduler=scheduler(use_dynamic_shifting=True),
        vae=parts.qwen_autoencoder(),
        **parts.text(lambda tokenizer: parts.qwen3_vl(tokenizer).model, parts.qwen_tokenizer()),
        transformer=network(
            diffusers.Krea2Transformer2DModel,
            in_channels=16,
            attention_head_dim=16,
            timestep_embed_dim=8,
            text_hidden_dim=16,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
        ),
        text_encoder_select_layers=(1, 3),
    )


def nucleus_moe() -> Any:
    """Nucleus-Image: a mixture of experts, guidance rescaled to the prompt's norm, negated outputs."""
    processor = parts.qwen3_vl_processor()
    return diffusers.NucleusMoEImagePipeline(
        transformer=network(
            diffusers.NucleusMoEImageTransformer2DModel,
            in_channels=16,
            num_key_value_heads=2,
            attention_head_dim=16,
            joint_attention_dim=16,
            dense_moe_strategy="leave_first_three_blocks_dense",
            num_experts=2,
            moe_intermediate_dim=32,
        ),
        scheduler=scheduler(use_dynamic_shifting=True),
        vae=parts.qwen_autoencoder(),
        text_encoder=parts.qwen3_vl(processor.tokenizer),
        processor=processor,
    )


def bria_fibo() -> Any:
    """Bria FIBO: the last layers of a SmolLM 3, one per block."""
    tokenizer = parts.qwen_tokenizer()
    # An empty prompt is the token 128000.
    encoder = parts.decoder(transformers.SmolLM3Config, tokenizer, layers=2)
    encoder.vocab_size = 128001
    return diffusers.BriaFiboPipeline(
        transformer=network(diffusers.BriaFiboTransformer2DModel, text_encoder_dim=16, **SIZES),
        scheduler=scheduler(use_dynamic_shifting=True),
        vae=parts.video_autoencoder(diffusers.AutoencoderKLWan, levels=5),
        text_encoder=transformers.SmolLM3ForCausalLM(encoder),
        tokenizer=tokenizer,
    )


def bria_fibo2() -> Any:
    """Bria FIBO 2: text in cross-attention and as gist tokens."""
    processor = parts.qwen3_vl_processor()
    return diffusers.BriaFibo2Pipeline(
        transformer=network(
            diffusers.BriaFibo2Transformer2DModel,
            n_layers=6,
            cap_feat_dim=48,
            injection_layer_ids=(1, 2, 3, 4, 5),
            perceiver_num_layers=1,
            min_num_gist_tokens=8,
            max_num_gist_tokens=16,
            gist_step=4,
            gist_min_text_len=16,
            gist_max_text_len=64,
            axes_lens=(256, 32, 32),
        ),
        scheduler=scheduler(use_dynamic_shifting=True),
        vae=parts.flux2_autoencoder(),
        text_encoder=parts.qwen3_vl(processor.tokenizer, layers=36),
        processor=processor,
    )


def ovis() -> Any:
    """Ovis-Image."""
    return diffusers.OvisImagePipeline(
        scheduler=scheduler(use_dynamic_shifting=True),
        vae=parts.autoencoder(**FLUX_VAE),
        **parts.text(lambda tokenizer: parts.qwen3(tokenizer).model, parts.qwen_tokenizer()),
        transformer=network(diffusers.OvisImageTransformer2DModel, in_channels=16, out_channels=16, **SIZES_16),
    )


def prx(pixels: bool = False) -> Any:
    """PRX in latents, or in pixels, where the output is the image itself."""
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    tokenizer = parts.gemma_tokenizer()
    tokenizer.model_max_length = 64
    module = parts.decoder(dict, tokenizer, query_pre_attn_scalar=8)
    common: dict[str, Any] = {
        "scheduler": scheduler(shift=3.0),
        "text_encoder": T5GemmaEncoder(transformers.T5GemmaConfig(encoder=module, decoder=module).encoder),  # type: ignore[arg-type]
        "tokenizer": tokenizer,
        "transformer": diffusers.PRXTransformer2DModel(
            in_channels=3 if pixels else 4,
            context_in_dim=16,
            hidden_size=32,
            num_heads=2,
            depth=2,
            axes_dim=[8, 8],
            bottleneck_size=8 if pixels else None,
            resolution_embeds=pixels,
        ),
        "default_sample_size": 16,
    }
    if pixels:
        return diffusers.PRXPixelPipeline(prompt_max_tokens=64, **common)
    return diffusers.PRXPipeline(vae=parts.autoencoder(**FLUX_VAE), **common)


def omnigen() -> Any:
    """OmniGen: one transformer reads prompt and image; its rotary table is that of the first row."""
    tokenizer = parts.qwen_tokenizer("<|user|>", "<|assistant|>", "<|diffusion|>", "<|end|>", "<img>", "</img>")
    return diffusers.OmniGenPipeline(
        transformer=network(
            diffusers.OmniGenTransformer2DModel,
            hidden_size=16,
            num_key_value_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            vocab_size=len(tokenizer),
            max_position_embeddings=1024,
            original_max_position_embeddings=128,
            rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
            pos_embed_max_size=16,
            time_step_dim=8,
        ),
        scheduler=scheduler(invert_sigmas=True),
        vae=parts.autoencoder(levels=4, scaling_factor=0.13025),
        tokenizer=tokenizer,
    )


def ernie_image() -> Any:
    """ERNIE-Image: prompts are not padded."""
    return diffusers.ErnieImagePipeline(
        transformer=network(
            diffusers.ErnieImageTransformer2DModel,
            ffn_hidden_size=32,
            in_channels=16,
            out_channels=16,
            text_in_dim=16,
        ),
        vae=parts.flux2_autoencoder(),
        **parts.text(lambda tokenizer: parts.mistral3(tokenizer).model, parts.qwen_tokenizer()),
        scheduler=scheduler(shift=3.0),
    )


def longcat() -> Any:
    """LongCat-Image: the prompt's call and the negative one have different arguments; norm-rescaled guidance."""
    tokenizer = parts.qwen_tokenizer("<|image_pad|>", "<|video_pad|>")
    return diffusers.LongCatImagePipeline(
        scheduler=scheduler(use_dynamic_shifting=True),
        vae=parts.autoencoder(16, **FLUX_VAE),
        text_encoder=parts.qwen25_vl(tokenizer),
        tokenizer=tokenizer,
        text_processor=parts.qwen2_vl_processor(tokenizer),
        transformer=network(
            diffusers.LongCatImageTransformer2DModel,
            in_channels=64,
            pooled_projection_dim=16,
            **SIZES_16,
        ),
    )


def ideogram4() -> Any:
    """Ideogram 4: guidance by a second network, a schedule of guidance, negated outputs."""
    tokenizer = parts.qwen_tokenizer()
    sizes: dict[str, Any] = {
        "in_channels": 16,
        "attention_head_dim": 16,
        "adaln_dim": 8,
        "llm_features_dim": 13 * 16,
        "mrope_section": (4, 2, 2),
    }
    return diffusers.Ideogram4Pipeline(
        scheduler=scheduler(),
        vae=parts.flux2_autoencoder(),
        text_encoder=parts.qwen3_vl(tokenizer, layers=36).model,
        tokenizer=tokenizer,
        transformer=network(diffusers.Ideogram4Transformer2DModel, **sizes),
        unconditional_transformer=network(diffusers.Ideogram4Transformer2DModel, **sizes),
    )


IDEOGRAM: dict[str, Any] = {"guidance_schedule": None, **CFG, "max_sequence_length": 64}
PRX = {**CFG, "use_resolution_binning": False}
BUILDERS = {
    "krea2": Builder(krea2, (1, 1), {**CFG, "max_sequence_length": 64}),
    "nucleus_moe": Builder(nucleus_moe, (1, 1), {**CFG, "return_index": -1}),
    "bria_fibo": Builder(bria_fibo, (2,), CFG, (32, 32)),
    "bria_fibo2": Builder(bria_fibo2, (1, 1), CFG),
    "ovis": Builder(ovis, (1, 1), {**CFG, "max_sequence_length": 64}),
    "prx": Builder(prx, (2,), PRX),
    "prx_pixel": Builder(lambda: prx(pixels=True), (2,), PRX),
    "omnigen": Builder(omnigen, (2,), CFG, (64, 64)),
    "ernie_image": Builder(ernie_image, (2,), CFG),
    "longcat": Builder(longcat, (1, 1), {**CFG, "enable_prompt_rewrite": False}),
    "ideogram4": Builder(ideogram4, (1, 1), IDEOGRAM, denoisers=("transformer", "unconditional_transformer")),
}

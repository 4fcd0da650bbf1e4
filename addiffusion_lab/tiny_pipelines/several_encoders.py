"""HiDream, HunyuanImage, Kandinsky 5, Cosmos, GLM-Image, Qwen-Image 2.1 and Sana-Sprint."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from addiffusion_lab.tiny_pipelines import parts
from addiffusion_lab.tiny_pipelines.builder import Builder
from addiffusion_lab.tiny_pipelines.diffusion_transformers import CFG, COGVIEW4_SHIFT, SANA, sana
from addiffusion_lab.tiny_pipelines.flux import TEXT, scheduler
from addiffusion_lab.tiny_pipelines.parts import FLUX_VAE, network


def hidream() -> Any:
    """HiDream: a mixture of experts; the layers of its Llama are stacked before the batch axis; negated outputs."""
    tokenizer = parts.qwen_tokenizer()
    pipe = diffusers.HiDreamImagePipeline(
        **parts.clip(projection=True),
        **parts.clip("_2", projection=True),
        scheduler=scheduler(shift=3.0),
        vae=parts.autoencoder(**FLUX_VAE),
        **parts.text(parts.t5, parts.t5_tokenizer(), "_3"),
        text_encoder_4=transformers.LlamaForCausalLM(
            parts.decoder(transformers.LlamaConfig, tokenizer, attn_implementation="eager")
        ),
        tokenizer_4=tokenizer,
        transformer=network(
            diffusers.HiDreamImageTransformer2DModel,
            patch_size=2,
            num_layers=1,
            attention_head_dim=16,
            caption_channels=[32, 16],
            text_emb_dim=32,
            axes_dims_rope=(8, 4, 4),
            max_resolution=(16, 16),
            llama_layers=[0, 1],
            force_inference_output=True,
        ),
    )
    pipe.default_sample_size = 8  # type: ignore[attr-defined]
    return pipe


def hunyuan_image() -> Any:
    """HunyuanImage 2.1: guidance by a guider with momentum."""
    from diffusers.guiders import AdaptiveProjectedMixGuidance

    pipe = diffusers.HunyuanImagePipeline(
        scheduler=scheduler(shift=5.0),
        vae=diffusers.AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32),
            layers_per_block=1,
            spatial_compression_ratio=2,
            sample_size=16,
            scaling_factor=0.75,
        ),
        **parts.text(parts.qwen25_vl, parts.qwen_tokenizer()),
        **parts.text(parts.t5, transformers.ByT5Tokenizer(extra_ids=0), "_2"),
        transformer=network(
            diffusers.HunyuanImageTransformer2DModel,
            attention_head_dim=16,
            num_layers=1,
            text_embed_dim=16,
            text_embed_2_dim=32,
            rope_axes_dim=(8, 8),
        ),
        guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1),
    )
    pipe.tokenizer_max_length = 96  # type: ignore[attr-defined]
    return pipe


def kandinsky5() -> Any:
    """Kandinsky 5: channels-last latents; rotary positions shared by all rows."""
    tokenizer = parts.qwen_tokenizer("<|image_pad|>", "<|video_pad|>")
    pipe = diffusers.Kandinsky5T2IPipeline(
        **parts.clip("_2"),
        transformer=diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=16,
            in_text_dim2=16,
            time_dim=16,
            out_visual_dim=4,
            model_dim=32,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(4, 6, 6),
            attention_type="regular",
        ),
        vae=parts.autoencoder(levels=4, **FLUX_VAE),
        text_encoder=parts.qwen25_vl(tokenizer),
        tokenizer=parts.qwen2_vl_processor(tokenizer),
        scheduler=scheduler(shift=5.0),
    )
    pipe.resolutions = [(64, 64)]  # type: ignore[attr-defined]
    return pipe


class AllSafe(torch.nn.Module):
    """Replaces Cosmos' guardrail, whose weights are not in any package."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, prompt: str) -> bool:
        """Accepts every prompt."""
        return True

    def check_video_safety(self, frames: Any) -> Any:
        """Accepts every image."""
        return frames


def cosmos2() -> Any:
    """Cosmos Predict 2: one frame of a video, noise levels up to 80, an output that the pipeline converts to x0."""
    return diffusers.Cosmos2TextToImagePipeline(
        **parts.text(parts.t5, parts.t5_tokenizer()),
        transformer=network(
            diffusers.CosmosTransformer3DModel,
            attention_head_dim=16,
            mlp_ratio=2,
            adaln_lora_dim=4,
            max_size=(4, 32, 32),
            rope_scale=(2.0, 1.0, 1.0),
            extra_pos_embed_type="learnable",
        ),
        vae=parts.video_autoencoder(diffusers.AutoencoderKLWan),
        scheduler=scheduler(use_karras_sigmas=True),
        safety_checker=AllSafe(),
    )


def glm_image() -> Any:
    """The decoder of GLM-Image: it takes the tokens of the image, and encodes quoted text only."""
    tokenizer = transformers.ByT5Tokenizer(extra_ids=0)
    return diffusers.GlmImagePipeline(
        tokenizer=tokenizer,
        processor=None,
        text_encoder=parts.t5(tokenizer),
        vision_language_encoder=None,
        vae=parts.autoencoder(latents_mean=[0.1] * 4, latents_std=[1.5] * 4),
        transformer=network(diffusers.GlmImageTransformer2DModel, prior_vq_quantizer_codebook_size=32),
        scheduler=scheduler(**COGVIEW4_SHIFT),
    )


def glm_image_inputs(prompt: str) -> dict[str, Any]:
    """The prompt in quotes, and the same tokens for all prompts."""
    return {"prompt": f'a sign "{prompt}"', "prior_token_ids": torch.arange(16)[None]}


def qwen_image21() -> Any:
    """Qwen-Image 2.1: one token per latent pixel; the text's keys and values are cached across steps."""
    processor = parts.qwen3_vl_processor()
    return diffusers.QwenImage21Pipeline(
        scheduler=scheduler(use_dynamic_shifting=True),
        vae=parts.video_autoencoder(diffusers.AutoencoderKLQwenImage21, 8, levels=5, decoder_base_dim=8),
        text_encoder=parts.qwen3_vl(processor.tokenizer),
        processor=processor,
        transformer=network(
            diffusers.QwenImage21Transformer2DModel,
            in_channels=8,
            out_channels=8,
            attention_head_dim=16,
            context_in_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
    )


def sana_sprint() -> Any:
    """Sana-Sprint: a TrigFlow consistency model, with the guidance scale as an input."""
    return sana(
        "SanaSprintPipeline",
        diffusers.SCMScheduler(prediction_type="trigflow", sigma_data=0.5),
        guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
    )


QWEN21 = {"true_cfg_scale": 3.0, "negative_prompt": "a cat"}
BUILDERS = {
    "hidream": Builder(hidream, (2,), {**CFG, **TEXT}),
    "hunyuan_image": Builder(hunyuan_image, (1, 1), guidance=None),
    "kandinsky5": Builder(kandinsky5, (1, 1), {**CFG, "max_sequence_length": 96}, (64, 64)),
    "cosmos2": Builder(cosmos2, (1, 1), {**CFG, "negative_prompt": "a cat", "max_sequence_length": 64}),
    "glm_image": Builder(glm_image, (1, 1), CFG, inputs=glm_image_inputs),
    "qwen_image21": Builder(qwen_image21, (1, 1), QWEN21, (64, 64), guidance="true_cfg_scale"),
    "qwen_image21_no_cache": Builder(
        qwen_image21, (1, 1), {**QWEN21, "use_kv_cache": False}, (64, 64), guidance="true_cfg_scale"
    ),
    "sana_sprint": Builder(sana_sprint, (1,), {**SANA, "num_inference_steps": 2}, (32, 32)),
}

"""Pipelines that are not supported: priors, two stages in one call, video, audio, class labels, no prompt."""

from __future__ import annotations

from typing import Any

import diffusers

from addiffusion_lab.tiny_pipelines import parts
from addiffusion_lab.tiny_pipelines.builder import Builder
from addiffusion_lab.tiny_pipelines.diffusion_transformers import CFG
from addiffusion_lab.tiny_pipelines.flux import TEXT, scheduler
from addiffusion_lab.tiny_pipelines.parts import network
from addiffusion_lab.tiny_pipelines.stable_diffusion import UNET
from addiffusion_lab.tiny_pipelines.unets import kandinsky22, kandinsky22_inputs


def parts_prior() -> dict[str, Any]:
    """Components of the prior of Kandinsky 2.2."""
    vision = parts.clip_vision()
    return {
        "prior": network(diffusers.PriorTransformer, embedding_dim=16, num_layers=1),
        "image_encoder": vision["image_encoder"],
        **parts.clip(projection=True),
        "scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=5.0
        ),
        "image_processor": vision["processor"],
    }


def kandinsky22_combined() -> Any:
    """Prior and decoder of Kandinsky 2.2 in one call: two loops, two schedulers."""
    prior = {f"prior_{name}": part for name, part in parts_prior().items()}
    return diffusers.KandinskyV22CombinedPipeline(**kandinsky22().components, **prior)


def wan() -> Any:
    """Wan 2.1: a video."""
    return diffusers.WanPipeline(
        **parts.text(parts.t5, parts.t5_tokenizer(), unified=True),
        vae=parts.video_autoencoder(diffusers.AutoencoderKLWan, 16),
        scheduler=scheduler(),
        transformer=network(
            diffusers.WanTransformer3DModel,
            in_channels=16,
            out_channels=16,
            attention_head_dim=12,
            text_dim=32,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
        ),
    )


def stable_audio() -> Any:
    """Stable Audio: sound."""
    tokenizer = parts.t5_tokenizer()
    tokenizer.model_max_length = 32
    return diffusers.StableAudioPipeline(
        vae=diffusers.AutoencoderOobleck(
            encoder_hidden_size=6,
            downsampling_ratios=[1, 2],
            decoder_channels=3,
            decoder_input_channels=3,
            channel_multiples=[1, 2],
            sampling_rate=4,
        ),
        text_encoder=parts.t5(tokenizer),
        projection_model=diffusers.StableAudioProjectionModel(
            text_encoder_dim=32, conditioning_dim=32, min_value=0, max_value=32
        ),
        tokenizer=tokenizer,
        transformer=network(
            diffusers.StableAudioDiTModel,
            sample_size=4,
            attention_head_dim=4,
            in_channels=3,
            out_channels=3,
            num_layers=1,
            num_key_value_attention_heads=2,
            cross_attention_dim=32,
            global_states_input_dim=64,
            cross_attention_input_dim=32,
        ),
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_schedule="exponential"
        ),
    )


def dit() -> Any:
    """DiT: class labels instead of prompts."""
    return diffusers.DiTPipeline(
        transformer=network(diffusers.DiTTransformer2DModel, num_layers=1, out_channels=8, num_embeds_ada_norm=1000),
        vae=parts.autoencoder(),
        scheduler=diffusers.DDIMScheduler(),
    )


def ddpm() -> Any:
    """An unconditional DDPM: no prompt."""
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler())


BUILDERS = {
    "kandinsky22_prior": Builder(
        lambda: diffusers.KandinskyV22PriorPipeline(**parts_prior()), (2,), CFG, sized=False, denoisers=("prior",)
    ),
    "kandinsky22_decoder": Builder(kandinsky22, (2,), CFG, (64, 64), inputs=kandinsky22_inputs, **UNET),
    "kandinsky22_combined": Builder(
        kandinsky22_combined, (2,), {**CFG, "prior_num_inference_steps": 2}, (64, 64), **UNET
    ),
    "wan": Builder(wan, (1, 1), {**CFG, **TEXT, "num_frames": 5}, task="text-to-video"),
    "stable_audio": Builder(stable_audio, (2,), {**CFG, "audio_end_in_s": 0.5}, sized=False, task="text-to-audio"),
    "dit": Builder(
        dit, (2,), {**CFG, "class_labels": [1]}, sized=False, inputs=lambda prompt: {}, task="class-to-image"
    ),
    "ddpm": Builder(ddpm, (1,), guidance=None, sized=False, inputs=lambda prompt: {}, task="unconditional", **UNET),
}

"""Stages vae, vae_decoder and preview: images to latents (stride 4, four channels) and back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch.nn import functional as F

from addiffusion_env.prompts.emoji_vocabulary import IMAGE_SIZE
from addiffusion_lab.emoji_training.config import TrainConfig, TrainReport
from addiffusion_lab.emoji_training.data import scene_bank
from addiffusion_lab.emoji_training.run import Run, earlier, save_diffuser

KL_WEIGHT = 2e-6
"""Weight of the KL term: the latents are barely regularised, only kept near unit scale."""

_EVALUATED = 2048  # images that scale and PSNR are measured on


def train_vae(config: TrainConfig) -> TrainReport:
    """Trains encoder and decoder together; writes ``vae/`` with ``scaling_factor`` = 1 / std of the latents."""
    run = Run("vae", config)
    with run.initial_weights():
        vae: Any = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(32, 64, 96),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=16,
            sample_size=IMAGE_SIZE,
            mid_block_add_attention=False,
        )
    return _fit(run, vae.to(run.device), rescale=True)


def train_vae_decoder(config: TrainConfig) -> TrainReport:
    """Trains the decoder of ``vae/`` further with the encoder frozen, so that latents and their scale are unchanged.

    Raises:
        WeightsError: when stage vae was not run.
    """
    run = Run("vae_decoder", config)
    vae = load_vae(run)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return _fit(run, vae, rescale=False)


def load_vae(run: Run) -> Any:
    """The autoencoder that stage vae trained."""
    return AutoencoderKL.from_pretrained(earlier(run.config, "vae", "vae")).to(run.device)


def _fit(run: Run, vae: Any, rescale: bool) -> TrainReport:
    layouts = scene_bank(run.config, run.stage, run.device).layouts
    learned = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, run.config.lr, weight_decay=0.0, betas=(0.9, 0.99))
    for _ in run.clock(optimizer):
        images = run.render(layouts[run.pick(len(layouts))])
        with run.autocast():
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample(run.generator)).sample
        loss = reconstruction_loss(decoded.float(), images) + KL_WEIGHT * posterior.kl().mean()
        run.update(optimizer, loss, vae.parameters())
    psnr = _measure(run, vae, run.render(layouts[:_EVALUATED]), rescale)
    folder = run.config.out / "vae"
    save_diffuser(vae, folder)
    return run.report(folder, psnr=psnr, scaling_factor=vae.config.scaling_factor)


def reconstruction_loss(decoded: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """L1 + 2 MSE + half the L1 of horizontal and vertical differences, which keeps sprite outlines sharp."""
    error = decoded - images
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + 2 * error.pow(2).mean() + 0.5 * edges


@torch.no_grad()
def _measure(run: Run, vae: Any, images: torch.Tensor, rescale: bool) -> float:
    """PSNR in dB of the reconstruction from the posterior's mode; sets the scaling factor if ``rescale``."""
    squared, latents = 0.0, []
    for part in images.split(256):
        latents.append(vae.encode(part).latent_dist.mode())
        squared += float((vae.decode(latents[-1]).sample - part).pow(2).sum())
    if rescale:
        vae.register_to_config(scaling_factor=float(1 / torch.cat(latents).std()))
    return -10 * math.log10(squared / images.numel() / 4)  # images span 2, so the peak squared is 4


def train_preview(config: TrainConfig) -> TrainReport:
    """Distils ``vae/`` into ``preview/``, a TAESD-like decoder of *scaled* latents for cheap previews.

    Random noise is added to its input, since it will decode predictions of x0.

    Raises:
        WeightsError: when stage vae was not run.
    """
    run = Run("preview", config)
    vae = load_vae(run).eval()
    with run.initial_weights():
        tiny: Any = AutoencoderTiny(
            encoder_block_out_channels=(32,) * 3,
            decoder_block_out_channels=(32,) * 3,
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(2, 2, 1),
            latent_channels=4,
        )
    tiny.to(run.device)
    layouts = scene_bank(config, run.stage, run.device).layouts
    optimizer = torch.optim.AdamW(tiny.parameters(), config.lr, weight_decay=0.0)
    scale = vae.config.scaling_factor
    for _ in run.clock(optimizer):
        images = run.render(layouts[run.pick(len(layouts))])
        with torch.no_grad(), run.autocast():
            latents = (vae.encode(images).latent_dist.mode() * scale).float()
            amount = 0.15 * torch.rand(len(latents), 1, 1, 1, device=run.device, generator=run.generator)
            latents = latents + amount * torch.randn(latents.shape, device=run.device, generator=run.generator)
            target = vae.decode(latents / scale).sample.float()
        with run.autocast():
            decoded, encoded = tiny.decode(latents).sample.float(), tiny.encode(images).latents.float()
        error = decoded - target
        loss = error.abs().mean() + 2 * error.pow(2).mean() + 0.1 * F.mse_loss(encoded, latents)
        run.update(optimizer, loss, tiny.parameters(), l1=error.abs().mean())
    folder: Path = config.out / "preview"
    save_diffuser(tiny, folder)
    return run.report(folder, l1=float(error.detach().abs().mean()))

"""Tiny pipelines with random weights in the hub's folder format, for `python -m addiffusion_env check sd15` and tests.

Latents are 8x8 and images 16x16, so that a whole episode on a CPU takes a second; everything else (two text encoders,
joint attention, packing, schedulers) is as in the real models of these classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from addiffusion_lab.tiny_pipelines import parts
from addiffusion_lab.tiny_pipelines.flux import flux as flux_pipeline
from addiffusion_lab.tiny_pipelines.flux import flux_transformer, scheduler
from addiffusion_lab.tiny_pipelines.stable_diffusion import lcm, parts_xl, sd15


def stable_diffusion(folder: Path, prediction_type: str = "epsilon") -> Any:
    """A ``StableDiffusionPipeline``, saved to ``folder``."""
    torch.manual_seed(0)
    return saved(sd15(prediction_type=prediction_type), folder)


def latent_consistency(folder: Path) -> Any:
    """A ``LatentConsistencyModelPipeline``, saved to ``folder``; its UNet takes the guidance scale as an input."""
    torch.manual_seed(7)
    return saved(lcm(), folder)


def stable_diffusion_xl(folder: Path, turbo: bool = False) -> Any:
    """A ``StableDiffusionXLPipeline``, saved to ``folder``; ``turbo`` gives it SDXL-Turbo's scheduler."""
    torch.manual_seed(1)
    steps: Any = diffusers.DDIMScheduler(**parts.SD_NOISE)
    if turbo:
        steps = diffusers.EulerAncestralDiscreteScheduler.from_config(steps.config, timestep_spacing="trailing")
    components = {**parts_xl(transformer_layers_per_block=(1, 2)), "scheduler": steps}
    return saved(diffusers.StableDiffusionXLPipeline(**components, add_watermarker=False), folder)


def flux(folder: Path, **settings: Any) -> Any:
    """A ``FluxPipeline``, saved to ``folder``; ``settings`` are those of its scheduler."""
    torch.manual_seed(2)
    pipe = flux_pipeline(
        vae=parts.autoencoder(16, scaling_factor=0.3611, shift_factor=0.1159),
        transformer=flux_transformer(64, None, num_layers=2, guidance_embeds=False),
        scheduler=scheduler(**settings),
    )
    pipe.default_sample_size = 8  # FluxPipeline's default is 128 latents per side
    return saved(pipe, folder)


def saved(pipe: Any, folder: Path) -> Any:
    """Saves a pipeline and returns it, without progress bars or dropout."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe

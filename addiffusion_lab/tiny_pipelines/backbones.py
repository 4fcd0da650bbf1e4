"""Registered backbones with tiny random weights, for `python -m addiffusion_env check NAME` and the tests.

Pipelines are saved in the hub's folder format. Latents are 8x8 and images 16x16, so that a whole episode on a CPU takes
a second; everything else (two text encoders, joint attention, packing, schedulers) is as in the real models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch

from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.base import Backbone, Load
from addiffusion_lab.tiny_pipelines import ZOO, parts
from addiffusion_lab.tiny_pipelines.flux import flux, flux_transformer, scheduler
from addiffusion_lab.tiny_pipelines.stable_diffusion import lcm, parts_xl, sd15


def sdxl(turbo: bool = False) -> Any:
    """A ``StableDiffusionXLPipeline``; ``turbo`` gives it SDXL-Turbo's scheduler."""
    steps: Any = diffusers.DDIMScheduler(**parts.SD_NOISE)
    if turbo:
        steps = diffusers.EulerAncestralDiscreteScheduler.from_config(steps.config, timestep_spacing="trailing")
    components = {**parts_xl(transformer_layers_per_block=(1, 2)), "scheduler": steps}
    return diffusers.StableDiffusionXLPipeline(**components, add_watermarker=False)


def flux_schnell() -> Any:
    """A ``FluxPipeline`` without guidance."""
    pipe = flux(
        vae=parts.autoencoder(16, **parts.FLUX_VAE),
        transformer=flux_transformer(64, None, num_layers=2, guidance_embeds=False),
        scheduler=scheduler(),
    )
    pipe.default_sample_size = 8  # FluxPipeline's default is 128 latents per side
    return pipe


RECIPES: dict[str, tuple[int, Callable[[], Any]]] = {
    "sd15": (0, sd15),
    "sd21": (0, partial(sd15, prediction_type="v_prediction")),
    "sdxl": (1, sdxl),
    "flux": (2, flux_schnell),
    "sd35": (0, ZOO["sd3"]),
    "flux2_klein": (0, ZOO["flux2_klein"]),
    "z_image": (0, ZOO["z_image"]),
    "qwen_image": (0, ZOO["qwen_image"]),
    "diffusers": (0, sd15),  # or any other
    "lcm": (7, lcm),
    "turbo": (1, partial(sdxl, turbo=True)),
}
"""Name of a backbone, or of a sampler with separate weights -> seed, and function that makes a tiny pipeline."""


def saved(name: str, folder: Path) -> Any:
    """Saves the tiny pipeline of a backbone to a folder and returns it, without progress bars or dropout."""
    seed, make = RECIPES[name]
    torch.manual_seed(seed)
    pipe = make()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


BUILDERS: dict[str, Callable[[Path], Any]] = {name: partial(saved, name) for name in RECIPES}
"""Name of a backbone, or of a sampler with separate weights -> function that saves a tiny pipeline to a folder."""

OPTIONS: dict[str, dict[str, Any]] = {
    "flux": {"image_size": 16, "pipeline_kwargs": {"max_sequence_length": 24}},
    **{name: {"image_size": 16, "preview": "linear"} for name in ("sd35", "z_image", "qwen_image")},
    "flux2_klein": {
        "image_size": 16,
        "preview": "linear",
        "pipeline_kwargs": {"text_encoder_out_layers": (1, 2, 3), "max_sequence_length": 160},
    },
}
"""Backbone -> options required by its tiny pipeline."""


def tiny_backbone(name: str, folder: Path) -> Backbone:
    """A hub backbone on tiny random weights, with a tiny random decoder for its previews; on the CPU.

    Args:
        name: a registered backbone that wraps a pipeline.
        folder: folder that the weights are written to.
    """
    saved(name, folder / "pipeline")
    torch.manual_seed(5)
    parts.tiny_autoencoder(16 if name == "flux" else 4).save_pretrained(folder / "preview")
    options = {"preview": str(folder / "preview"), **OPTIONS.get(name, {})}
    backbone: Backbone = BACKBONES.load(name).from_pretrained(
        Load(str(folder / "pipeline"), device="cpu", dtype="float32", options=options)
    )
    return backbone


TINY: dict[str, Callable[[Path], Any]] = {
    name: partial(tiny_backbone, name) if name in BACKBONES else build for name, build in BUILDERS.items()
}
"""The tiny backbones of ``check``; see :data:`addiffusion_env.checks.TINY`."""

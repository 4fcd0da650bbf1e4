"""Registered backbones with tiny random weights, for `python -m addiffusion_env check NAME` and the tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.base import Backbone, Load
from addiffusion_lab.tiny_pipelines import ZOO
from addiffusion_lab.tiny_pipelines.folders import (
    flux,
    latent_consistency,
    saved,
    stable_diffusion,
    stable_diffusion_xl,
)
from addiffusion_lab.tiny_pipelines.parts import tiny_autoencoder

BUILDERS: dict[str, Callable[[Path], Any]] = {
    "sd15": stable_diffusion,
    "sd21": lambda folder: stable_diffusion(folder, "v_prediction"),
    "sdxl": stable_diffusion_xl,
    "flux": flux,
    "sd35": lambda folder: saved(ZOO["sd3"](), folder),
    "flux2_klein": lambda folder: saved(ZOO["flux2_klein"](), folder),
    "z_image": lambda folder: saved(ZOO["z_image"](), folder),
    "qwen_image": lambda folder: saved(ZOO["qwen_image"](), folder),
    "diffusers": stable_diffusion,  # or any other
    "lcm": latent_consistency,
    "turbo": partial(stable_diffusion_xl, turbo=True),
}
"""Name of a backbone, or of a sampler with separate weights -> function that saves a tiny pipeline to a folder."""

OPTIONS: dict[str, dict[str, Any]] = {
    "flux": {"image_size": 16, "max_sequence_length": 24},
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
    BUILDERS[name](folder / "pipeline")
    torch.manual_seed(5)
    tiny_autoencoder(16 if name == "flux" else 4).save_pretrained(folder / "preview")
    options = {"preview": str(folder / "preview"), **OPTIONS.get(name, {})}
    backbone: Backbone = BACKBONES.load(name).from_pretrained(
        Load(str(folder / "pipeline"), device="cpu", dtype="float32", options=options)
    )
    return backbone


TINY: dict[str, Callable[[Path], Any]] = {
    name: partial(tiny_backbone, name) if name in BACKBONES else build for name, build in BUILDERS.items()
}
"""The tiny backbones of ``check``; see :data:`addiffusion_env.checks.TINY`."""

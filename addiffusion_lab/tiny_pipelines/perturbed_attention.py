"""Perturbed-attention guidance: three branches in one call, whose processors split the rows by branch."""

from __future__ import annotations

from addiffusion_lab.tiny_pipelines.builder import Builder
from addiffusion_lab.tiny_pipelines.diffusion_transformers import CFG, PIXART, SANA, hunyuan_dit, pixart, sana
from addiffusion_lab.tiny_pipelines.flux import TEXT
from addiffusion_lab.tiny_pipelines.stable_diffusion import UNET, sd3, sd15, sdxl

PAG = {**CFG, "pag_scale": 2.0}
BUILDERS = {
    "pag_sd15": Builder(lambda: sd15("StableDiffusionPAGPipeline"), (3,), PAG, fast=True, **UNET),
    "pag_sdxl": Builder(lambda: sdxl("StableDiffusionXLPAGPipeline"), (3,), PAG, **UNET),
    "pag_sd3": Builder(lambda: sd3("StableDiffusion3PAGPipeline"), (3,), {**PAG, **TEXT}),
    "pag_pixart_sigma": Builder(
        lambda: pixart("PixArtSigmaPAGPipeline", use_additional_conditions=False), (3,), {**PIXART, "pag_scale": 2.0}
    ),
    "pag_sana": Builder(lambda: sana("SanaPAGPipeline"), (3,), {**SANA, "pag_scale": 2.0}, (32, 32)),
    "pag_hunyuan_dit": Builder(
        lambda: hunyuan_dit("HunyuanDiTPAGPipeline"), (3,), {**PAG, "use_resolution_binning": False}
    ),
}

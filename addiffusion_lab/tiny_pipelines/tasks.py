"""Pipelines that start from an image, and perturbed-attention guidance: three branches in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from addiffusion_lab.tiny_pipelines.builder import Builder
from addiffusion_lab.tiny_pipelines.diffusion_transformers import (
    CFG,
    PIXART,
    SANA,
    hunyuan_dit,
    pixart,
    qwen_image,
    sana,
    z_image,
)
from addiffusion_lab.tiny_pipelines.flux import CHAT, TEXT, chroma, flux, flux2_klein, flux_transformer
from addiffusion_lab.tiny_pipelines.stable_diffusion import UNET, sd3, sd15, sdxl


def image(seed: int = 0, size: int = 16) -> Image.Image:
    """A random image."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def mask(size: int = 16) -> Image.Image:
    """A mask of an image's left half."""
    pixels = np.zeros((size, size), dtype=np.uint8)
    pixels[:, : size // 2] = 255
    return Image.fromarray(pixels)


IMG2IMG: dict[str, Any] = {"task": "image-to-image", "sized": False}
INPAINT: dict[str, Any] = {"task": "inpainting"}
FROM: dict[str, Any] = {"image": image(), "strength": 0.75, "num_inference_steps": 4}
PART: dict[str, Any] = {**FROM, "mask_image": mask()}
UNET_9: dict[str, Any] = {"in_channels": 9}
PAG = {**CFG, "pag_scale": 2.0}
BUILDERS = {
    "pag_sd15": Builder(lambda: sd15("StableDiffusionPAGPipeline"), (3,), PAG, fast=True, **UNET),
    "pag_sdxl": Builder(lambda: sdxl("StableDiffusionXLPAGPipeline"), (3,), PAG, **UNET),
    "pag_sd3": Builder(lambda: sd3("StableDiffusion3PAGPipeline"), (3,), {**PAG, **TEXT}),
    "pag_pixart_sigma": Builder(lambda: pixart("PixArtSigmaPAGPipeline"), (3,), {**PIXART, "pag_scale": 2.0}),
    "pag_sana": Builder(lambda: sana("SanaPAGPipeline"), (3,), {**SANA, "pag_scale": 2.0}, (32, 32)),
    "pag_hunyuan_dit": Builder(
        lambda: hunyuan_dit("HunyuanDiTPAGPipeline"), (3,), {**PAG, "use_resolution_binning": False}
    ),
    "sd15_img2img": Builder(lambda: sd15("StableDiffusionImg2ImgPipeline"), (2,), {**CFG, **FROM}, **IMG2IMG, **UNET),
    "sd15_pix2pix": Builder(  # guided by prompt and image: three branches in one call, eight channels
        lambda: sd15("StableDiffusionInstructPix2PixPipeline", unet={"in_channels": 8}),
        (3,),
        {**CFG, "image": image(), "image_guidance_scale": 1.5},
        **IMG2IMG,
        **UNET,
    ),
    "sdxl_img2img": Builder(lambda: sdxl("StableDiffusionXLImg2ImgPipeline"), (2,), {**CFG, **FROM}, **IMG2IMG, **UNET),
    "sd3_img2img": Builder(
        lambda: sd3("StableDiffusion3Img2ImgPipeline"), (2,), {**CFG, **FROM, **TEXT}, task="image-to-image"
    ),
    "flux_img2img": Builder(lambda: flux("FluxImg2ImgPipeline"), (1,), {**CFG, **FROM, **TEXT}, task="image-to-image"),
    "flux_kontext": Builder(
        lambda: flux("FluxKontextPipeline"),
        (1,),
        {**CFG, **TEXT, "image": image(), "max_area": 256, "_auto_resize": False},
        task="image-to-image",
    ),
    "flux2_klein_edit": Builder(flux2_klein, (1, 1), {**CFG, **CHAT, "image": image(size=64)}, task="image-to-image"),
    "flux2_klein_kv": Builder(
        lambda: flux2_klein("Flux2KleinKVPipeline"),
        (1,),
        {**CHAT, "image": image(size=64)},
        guidance=None,
        task="image-to-image",
    ),
    "chroma_img2img": Builder(
        lambda: chroma("ChromaImg2ImgPipeline"), (1, 1), {**CFG, **FROM, **TEXT}, task="image-to-image"
    ),
    "z_image_img2img": Builder(
        lambda: z_image("ZImageImg2ImgPipeline"),
        (2,),
        {**CFG, **FROM, "max_sequence_length": 64},
        task="image-to-image",
    ),
    "qwen_image_img2img": Builder(
        lambda: qwen_image("QwenImageImg2ImgPipeline"),
        (1, 1),
        {**FROM, "true_cfg_scale": 3.0, "negative_prompt": "a cat"},
        guidance="true_cfg_scale",
        task="image-to-image",
    ),
    "sd15_inpaint": Builder(lambda: sd15("StableDiffusionInpaintPipeline"), (2,), {**CFG, **PART}, **INPAINT, **UNET),
    "sd15_inpaint_9": Builder(
        lambda: sd15("StableDiffusionInpaintPipeline", unet=UNET_9), (2,), {**CFG, **PART}, **INPAINT, **UNET
    ),
    "sdxl_inpaint": Builder(lambda: sdxl("StableDiffusionXLInpaintPipeline"), (2,), {**CFG, **PART}, **INPAINT, **UNET),
    "sd3_inpaint": Builder(lambda: sd3("StableDiffusion3InpaintPipeline"), (2,), {**CFG, **PART, **TEXT}, **INPAINT),
    "flux_inpaint": Builder(lambda: flux("FluxInpaintPipeline"), (1,), {**CFG, **PART, **TEXT}, **INPAINT),
    "flux_fill": Builder(
        lambda: flux("FluxFillPipeline", transformer=flux_transformer(48)),
        (1,),
        {**CFG, **TEXT, "image": image(), "mask_image": mask()},
        **INPAINT,
    ),
}

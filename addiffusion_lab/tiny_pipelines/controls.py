"""Pipelines with a second network or an adapter in addition to the denoiser: ControlNet, T2I-Adapter, IP-Adapter."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from addiffusion_lab.tiny_pipelines import parts
from addiffusion_lab.tiny_pipelines.builder import Builder
from addiffusion_lab.tiny_pipelines.diffusion_transformers import (
    CFG,
    QWEN_IMAGE_SIZES,
    qwen_image,
    z_image,
)
from addiffusion_lab.tiny_pipelines.flux import SIZES, TEXT, flux, flux_transformer
from addiffusion_lab.tiny_pipelines.stable_diffusion import SD3_SIZES, UNET, parts_15, parts_xl, sd3, sd15, sdxl
from addiffusion_lab.tiny_pipelines.tasks import image


def unet_controlnets(unet: Any, count: int = 1) -> Any:
    """One ControlNet with the sizes of a UNet, or a list of several."""
    settings: dict[str, Any] = {"conditioning_embedding_out_channels": (8, 8), "load_weights_from_unet": False}
    networks = [diffusers.ControlNetModel.from_unet(unet, **settings) for _ in range(count)]
    return networks if count > 1 else networks[0]


def sd15_controlnet(count: int = 1) -> Any:
    """Stable Diffusion 1.5 with one ControlNet or several."""
    components = parts_15()
    networks = unet_controlnets(components["unet"], count)
    return diffusers.StableDiffusionControlNetPipeline(controlnet=networks, requires_safety_checker=False, **components)


def sdxl_controlnet() -> Any:
    """Stable Diffusion XL with a ControlNet."""
    components = parts_xl()
    return diffusers.StableDiffusionXLControlNetPipeline(controlnet=unet_controlnets(components["unet"]), **components)


def sd3_controlnet() -> Any:
    """Stable Diffusion 3.5 with a ControlNet."""
    return sd3(
        "StableDiffusion3ControlNetPipeline",
        controlnet=parts.network(diffusers.SD3ControlNetModel, **SD3_SIZES, num_layers=1),
    )


def flux_controlnet() -> Any:
    """Flux.1-dev with a ControlNet."""
    network = parts.network(diffusers.FluxControlNetModel, in_channels=16, guidance_embeds=True, **SIZES)
    return flux("FluxControlNetPipeline", controlnet=network)


def qwen_image_controlnet() -> Any:
    """Qwen-Image with a ControlNet."""
    network = parts.network(diffusers.QwenImageControlNetModel, **QWEN_IMAGE_SIZES, num_layers=1)
    return qwen_image("QwenImageControlNetPipeline", controlnet=network)


def z_image_controlnet() -> Any:
    """Z-Image with a ControlNet, which shares layers with the transformer."""
    network = parts.network(
        diffusers.ZImageControlNetModel,
        n_kv_heads=2,
        control_layers_places=[0],
        control_refiner_layers_places=[0],
        control_in_dim=16,
    )
    return z_image("ZImageControlNetPipeline", controlnet=network)


def sdxl_adapter() -> Any:
    """Stable Diffusion XL with a T2I-Adapter, which is called once, before the steps."""
    adapter = diffusers.T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter")
    return sdxl("StableDiffusionXLAdapterPipeline", adapter=adapter)


def sd15_ip_adapter() -> Any:
    """Stable Diffusion 1.5 with an IP-Adapter: an image prompt in every cross-attention."""
    pipe = sd15()
    vision = parts.clip_vision()
    pipe.register_modules(image_encoder=vision["image_encoder"], feature_extractor=vision["processor"])
    widths = [processor_width(pipe.unet, name) for name in pipe.unet.attn_processors if "attn2" in name]
    keys = [(f"{2 * index + 1}.to_{half}_ip.weight", width) for index, width in enumerate(widths) for half in "kv"]
    tokens = 4
    adapter = {
        "image_proj": {
            "proj.weight": torch.randn(16 * tokens, 16),
            "proj.bias": torch.zeros(16 * tokens),
            "norm.weight": torch.ones(16),
            "norm.bias": torch.zeros(16),
        },
        "ip_adapter": {key: torch.randn(width, 16) for key, width in keys},
    }
    pipe.load_ip_adapter(adapter, subfolder="", weight_name="", image_encoder_folder=None)
    return pipe


def processor_width(unet: Any, name: str) -> int:
    """Number of channels of the attention layer whose processor has this name."""
    width: int = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
    return width


CONTROL: dict[str, Any] = {"task": "controlnet"}
WITH_UNET: dict[str, Any] = {"denoisers": ("controlnet", "unet"), **CONTROL}
WITH_TRANSFORMER: dict[str, Any] = {"denoisers": ("controlnet", "transformer"), **CONTROL}
BUILDERS = {
    "sd15_controlnet": Builder(sd15_controlnet, (2, 2), {**CFG, "image": image()}, **WITH_UNET),
    "sd15_controlnet_guess": Builder(
        sd15_controlnet, (1, 2), {**CFG, "image": image(), "guess_mode": True}, **WITH_UNET
    ),
    "sd15_controlnets": Builder(
        lambda: sd15_controlnet(2),
        (2, 2),
        {**CFG, "image": [image(), image(1)], "controlnet_conditioning_scale": [1.0, 0.5]},
        **WITH_UNET,
    ),
    "sdxl_controlnet": Builder(sdxl_controlnet, (2, 2), {**CFG, "image": image()}, **WITH_UNET),
    "sd3_controlnet": Builder(sd3_controlnet, (2, 2), {**CFG, **TEXT, "control_image": image()}, **WITH_TRANSFORMER),
    "flux_controlnet": Builder(flux_controlnet, (1, 1), {**CFG, **TEXT, "control_image": image()}, **WITH_TRANSFORMER),
    "qwen_image_controlnet": Builder(
        qwen_image_controlnet,
        (1, 1, 1),
        {"true_cfg_scale": 3.0, "negative_prompt": "a cat", "control_image": image()},
        guidance="true_cfg_scale",
        **WITH_TRANSFORMER,
    ),
    "z_image_controlnet": Builder(
        z_image_controlnet, (2, 2), {**CFG, "max_sequence_length": 64, "control_image": image()}, **WITH_TRANSFORMER
    ),
    "flux_control": Builder(
        lambda: flux("FluxControlPipeline", transformer=flux_transformer(32)),
        (1,),
        {**CFG, **TEXT, "control_image": image()},
        **CONTROL,
    ),
    "sdxl_adapter": Builder(sdxl_adapter, (2,), {**CFG, "image": image()}, **CONTROL, **UNET),
    "sd15_ip_adapter": Builder(sd15_ip_adapter, (2,), {**CFG, "ip_adapter_image": image()}, **UNET),
}

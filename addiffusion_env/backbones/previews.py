"""Tiny decoders from the hub, for cheap previews of latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from addiffusion_env.backbones.devices import quiet_loading
from addiffusion_env.errors import WeightsError
from addiffusion_env.files import again, file_in, folder_of, in_a_line, read_json

PREVIEW_SIDE = 224
"""Input size of CLIP, ImageReward and DINOv2 in pixels: previews are decoded no larger."""

FILES = ("config.json", "*.safetensors")


def tiny_decoder(name_or_path: str, channels: int, dtype: torch.dtype) -> nn.Module:
    """Loads an ``AutoencoderTiny`` by hub id or from a folder.

    Raises:
        WeightsError: when it is not available, of a different class, or made for other latents.
    """
    from diffusers import AutoencoderTiny

    folder = folder_of(name_or_path, FILES)
    config: dict[str, Any] = read_json(file_in(folder, "config.json"))
    kind = config.get("_class_name")
    if kind != "AutoencoderTiny":
        raise WeightsError(f"{folder} holds a {kind}, expected an AutoencoderTiny", "give a folder of that kind")
    if config.get("latent_channels") != channels:
        raise WeightsError(
            f"{name_or_path} decodes {config.get('latent_channels')} latent channels, this model has {channels}",
            "give the tiny decoder that was made for it",
        )
    file_in(folder, "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
    try:
        with quiet_loading():
            return AutoencoderTiny.from_pretrained(folder, local_files_only=True, dtype=dtype)
    except Exception as error:
        raise WeightsError(
            f"{folder} does not load as AutoencoderTiny: {in_a_line(error)}", again(folder / "*")
        ) from error

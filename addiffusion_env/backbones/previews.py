"""Cheap looks at latents: a tiny decoder from the hub, or, when there is none, one matrix from latents to colours."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from addiffusion_env.backbones.devices import dtype_keyword
from addiffusion_env.backbones.hub import again, file_in, folder_of, in_a_line, read_json
from addiffusion_env.backbones.quiet import quiet_loading
from addiffusion_env.errors import ConfigError, WeightsError

PREVIEW_SIDE = 224
"""Pixels a side that CLIP, ImageReward and DINOv2 read: nothing larger is decoded for a look."""

FILES = ("config.json", "*.safetensors")


@dataclass(frozen=True)
class LinearFactors:
    """An affine map from one latent cell to a colour in [-1, 1].

    Attributes:
        weights: one (red, green, blue) a latent channel.
        bias: (red, green, blue).
        source: where the numbers were published.
    """

    weights: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)
    source: str = ""


SD_FACTORS = LinearFactors(
    ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473)),
    source="https://discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204",
)

# Published for colours in [0, 255], as (60, -60, 25, -70), (60, -5, 15, -50), (60, 10, -5, -35) and (150, 140, 130).
SDXL_FACTORS = LinearFactors(
    tuple(
        (red / 127.5, green / 127.5, blue / 127.5)
        for red, green, blue in ((60, 60, 60), (-60, -5, 10), (25, 15, -5), (-70, -50, -35))
    ),
    bias=(150 / 127.5 - 1, 140 / 127.5 - 1, 130 / 127.5 - 1),
    source="https://huggingface.co/blog/TimothyAlexisVass/explaining-the-sdxl-latent-space",
)

FLUX_FACTORS = LinearFactors(
    (
        (-0.0404, 0.0159, 0.0609),
        (0.0043, 0.0298, 0.0850),
        (0.0328, -0.0749, -0.0503),
        (-0.0245, 0.0085, 0.0549),
        (0.0966, 0.0894, 0.0530),
        (0.0035, 0.0399, 0.0123),
        (0.0583, 0.1184, 0.1262),
        (-0.0191, -0.0206, -0.0306),
        (-0.0324, 0.0055, 0.1001),
        (0.0955, 0.0659, -0.0545),
        (-0.0504, 0.0231, -0.0013),
        (0.0500, -0.0008, -0.0088),
        (0.0982, 0.0941, 0.0976),
        (-0.1233, -0.0280, -0.0897),
        (-0.0005, -0.0530, -0.0020),
        (-0.1273, -0.0932, -0.0680),
    ),
    source="the Flux factors of ComfyUI's latent previews (comfy/latent_formats.py)",
)


@dataclass(frozen=True)
class PreviewSpec:
    """How a backbone's latents are looked at.

    Attributes:
        tiny_id: hub id of the ``AutoencoderTiny`` made for these latents.
        factors: the affine map that stands in for it.
    """

    tiny_id: str
    factors: LinearFactors


class LinearPreview(nn.Module):
    """Latents to colours by one affine map, with the calling convention of diffusers' ``AutoencoderTiny``.

    The picture has the latents' resolution. Shapes and colours can be made out; a scorer sees less than in a tiny
    decoder's picture.
    """

    def __init__(self, factors: LinearFactors) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(factors.weights))
        self.register_buffer("bias", torch.tensor(factors.bias))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the map."""
        return self.get_buffer("weights").dtype

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """(B, C, h, w) latents -> a tuple of one (B, 3, h, w) picture, roughly in [-1, 1]."""
        colours = torch.einsum("bchw,cr->brhw", latents, self.get_buffer("weights"))
        return (colours + self.get_buffer("bias")[:, None, None],)


def load_preview(
    spec: PreviewSpec, given: str | nn.Module | None, channels: int, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The tiny decoder of some latents.

    Args:
        spec: the backbone's own.
        given: a loaded decoder, a hub id or folder, or ``"linear"``; ``None`` takes the backbone's own tiny decoder,
            and the linear map, with a warning, where that cannot be had.
        channels: of the latents.
        device: where it runs.
        dtype: its precision, unless it is loaded already.

    Raises:
        WeightsError: when a decoder that was asked for cannot be had, or is made for other latents.
        ConfigError: when the linear map is made for other latents.
    """
    decoder: nn.Module
    if isinstance(given, nn.Module):
        decoder = given
    elif given == "linear":
        decoder = linear_preview(spec.factors, channels).to(dtype)
    elif given is not None:
        decoder = tiny_decoder(given, channels, dtype)
    else:
        try:
            decoder = tiny_decoder(spec.tiny_id, channels, dtype)
        except WeightsError as error:
            warnings.warn(
                f"previews are a linear map of the latents, coarse and without detail: {error.cause}\n  -> "
                f"{error.remedy}, or set backbone_options.preview=linear to choose this",
                UserWarning,
                stacklevel=3,
            )
            decoder = linear_preview(spec.factors, channels).to(dtype)
    return decoder.to(device).eval().requires_grad_(False)


def linear_preview(factors: LinearFactors, channels: int) -> LinearPreview:
    """The affine map, checked against the latents.

    Raises:
        ConfigError: when it is made for another number of channels.
    """
    if len(factors.weights) != channels:
        raise ConfigError(
            f"the linear preview is made for {len(factors.weights)} latent channels, this model has {channels}",
            "set preview to an AutoencoderTiny that was made for it",
        )
    return LinearPreview(factors)


def tiny_decoder(name_or_path: str, channels: int, dtype: torch.dtype) -> nn.Module:
    """Loads an ``AutoencoderTiny`` by hub id or from a folder.

    Raises:
        WeightsError: when it cannot be had, is of another kind, or is made for other latents.
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
            return AutoencoderTiny.from_pretrained(folder, local_files_only=True, **{dtype_keyword(): dtype})
    except Exception as error:
        raise WeightsError(
            f"{folder} does not load as AutoencoderTiny: {in_a_line(error)}", again(folder / "*")
        ) from error

"""Cheap previews of any pipeline's latents: its family's tiny decoder, or a least-squares map from latents to RGB."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from addiffusion_env.backbones.batches import resized
from addiffusion_env.backbones.calls.measured import Measurements
from addiffusion_env.backbones.previews import PREVIEW_SIDE, tiny_decoder
from addiffusion_env.errors import CapabilityError, WeightsError

TINY_DECODERS = {
    # (latent channels, scaling factor): id; the ids are those of diffusers' documentation of AutoencoderTiny.
    (4, 0.18215): "madebyollin/taesd",
    (4, 0.13025): "madebyollin/taesdxl",
    (16, 1.5305): "madebyollin/taesd3",
    (16, 0.3611): "madebyollin/taef1",
}
"""Tiny decoders by the autoencoder that they replace."""

FITTED_IMAGES = 8
"""Smooth random images that the least-squares map is fitted to."""


class LatentColours(nn.Module):
    """An affine map from one latent cell to an RGB colour, fitted by least squares.

    Attributes:
        weights: (C, 3).
        bias: (3,).
        error: root mean square error of colours in [-1, 1], on held-out images.
        spread: standard deviation of those colours, which is the error of predicting the mean.
    """

    def __init__(self, weights: Tensor, bias: Tensor, error: float, spread: float) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.register_buffer("bias", bias)
        self.error, self.spread = error, spread

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, h, w)."""
        weights, bias = self.get_buffer("weights"), self.get_buffer("bias")
        return torch.einsum("bchw,cr->brhw", x.to(weights), weights) + bias[:, None, None]


class PreviewDecoder:
    """Decodes previews of a backbone's clean latents; the decoder is loaded or fitted when first used.

    Args:
        name: name of the pipeline's class, for messages.
        measured: the pipeline's measured properties.
        decode: the pipeline's own decoder: (B, C, h, w) clean latents -> (B, 3, H, W) in [-1, 1].
        chosen: an ``AutoencoderTiny``, its hub id or folder, ``"linear"``, or ``"none"``; ``None`` selects the family's
            tiny decoder, else the linear map, with a warning.
    """

    def __init__(
        self, name: str, measured: Measurements, decode: Callable[[Tensor], Tensor], chosen: str | nn.Module | None
    ) -> None:
        self.name, self.measured, self.decode = name, measured, decode
        self.chosen = chosen
        self.decoder: Any = None
        if isinstance(chosen, nn.Module):
            self.decoder = chosen
        elif chosen not in (None, "linear", "none"):
            self.decoder = self._tiny(str(chosen))

    @property
    def known(self) -> str | None:
        """The id of the family's tiny decoder; ``None`` if none is known."""
        config = getattr(self.measured.decoder, "config", {})
        return TINY_DECODERS.get((self.measured.layout.shape[0], config.get("scaling_factor", 0.0)))

    @property
    def possible(self) -> bool:
        """Whether previews are available: latents are spatial and there is a decoder for them."""
        return self.chosen != "none" and self.measured.layout.spatial

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a preview: the image's size, limited to the scorers' input size."""
        height, width = self.measured.image_size
        scale = min(1.0, PREVIEW_SIDE / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def find(self) -> Any:
        """The preview decoder, loaded or fitted on first use; ``None`` if there is none."""
        if self.decoder is None and self.possible and self.measured.decoder is not None:
            self.decoder = self._found()
        return self.decoder

    def preview(self, x0: Tensor) -> Tensor:
        """Decodes a preview: (B, C, h, w) clean latents -> (B, 3, h', w') float32 in [-1, 1].

        Raises:
            CapabilityError: when previews are not available.
        """
        if not self.possible:
            raise CapabilityError(
                f"there are no previews of a {self.name}'s latents",
                "pass preview= with a tiny decoder made for them, or a policy that scores finished images only",
            )
        size = self.size
        if self.measured.decoder is None:
            return resized(x0.float(), size).clamp(-1, 1)  # the latents are pixels
        self.find()
        if isinstance(self.decoder, LatentColours):
            image = self.decoder(x0.float())
        else:
            grid = self._grid(x0, size)
            image = self.decoder.decode(resized(x0, grid).to(self.decoder.dtype), return_dict=False)[0].float()
        return resized(image, size).clamp(-1, 1)

    def _grid(self, x0: Tensor, size: tuple[int, int]) -> tuple[int, int]:
        height = self.measured.image_size[0]
        scale = max(1, height // x0.shape[-2])
        return max(1, size[0] // scale), max(1, size[1] // scale)

    def _found(self) -> Any:
        decoder = self.measured.decoder
        channels = self.measured.layout.shape[0]
        wanted = self.known
        if wanted is not None and self.chosen is None:
            try:
                return self._tiny(wanted)
            except WeightsError as error:
                reason = error.cause
        else:
            reason = f"no tiny decoder is known for {channels} latent channels of a {type(decoder).__name__}"
        made = fit_colours(self.measured, self.decode)
        if self.chosen is None:
            warnings.warn(
                f"previews are a least-squares map from latents to colours (error {made.error:.2f} of "
                f"{made.spread:.2f}): {reason}\n  -> pass preview= with an AutoencoderTiny, or "
                "preview='linear' to choose this",
                UserWarning,
                stacklevel=4,
            )
        return made

    def _tiny(self, name: str) -> Any:
        measured = self.measured
        dtype = measured.dtype if measured.device.type != "cpu" else torch.float32
        found = tiny_decoder(name, measured.layout.shape[0], dtype)
        return found.to(measured.device).eval().requires_grad_(False)


@torch.no_grad()
def fit_colours(measured: Measurements, decode: Callable[[Tensor], Tensor]) -> LatentColours:
    """Fits the map on smooth random latents and the pipeline's own decoding of them."""
    layout = measured.layout
    channels, height, width = layout.shape
    generator = torch.Generator().manual_seed(0)
    latents = []
    for image in range(FITTED_IMAGES):
        coarse = torch.randn(1, channels, 1 + image % 4, 1 + image % 4, generator=generator)
        latents.append(F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False))
    x = torch.cat(latents).to(measured.device)
    images = decode(x)
    colours = F.adaptive_avg_pool2d(images.float(), (height, width))
    inputs = x.permute(0, 2, 3, 1).reshape(-1, channels).double().cpu()
    wanted = colours.permute(0, 2, 3, 1).reshape(-1, 3).double().cpu()
    cells = height * width
    fitted = slice(0, len(inputs) - 2 * cells)
    design = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], 1)
    ridge = 1e-3 * torch.eye(channels + 1, dtype=torch.float64) * len(design[fitted])
    solution = torch.linalg.solve(design[fitted].T @ design[fitted] + ridge, design[fitted].T @ wanted[fitted])
    rest = slice(len(inputs) - 2 * cells, None)
    error = (design[rest] @ solution - wanted[rest]).pow(2).mean().sqrt()
    spread = (wanted[rest] - wanted[fitted].mean(0)).pow(2).mean().sqrt()
    made = LatentColours(solution[:-1].float(), solution[-1].float(), float(error), float(spread))
    return made.to(measured.device)

"""Pictures in [-1, 1] to what a vision model reads, on tensors: resize, crop, normalise, on the pictures' device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """How one vision model wants its pictures.

    The published pipelines go through PIL, which rounds to bytes after resizing; on tensors nothing is rounded, which
    moves a score by less than what saving the picture as PNG does.

    Attributes:
        size: side of the square that the model reads, in pixels.
        mean: per channel, of pixels in [0, 1]. 0.5 with std 0.5 leaves pictures in [-1, 1] as they are.
        std: per channel, of pixels in [0, 1].
        resize: length to which ``mode`` resizes; ``None`` for ``size``. DINOv2 resizes to 256 and crops to 224.
        mode: ``"shortest"``: the shorter side becomes ``resize``, the middle is kept; ``"longest"``: the longer side
            does, black bars fill the rest; ``"squash"``: both do.
        interpolation: ``"bicubic"`` or ``"bilinear"``, always with antialiasing.
    """

    size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resize: int | None = None
    mode: str = "shortest"
    interpolation: str = "bicubic"

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any]) -> Preprocess:
        """From open_clip's ``preprocess_cfg``."""
        size = config.get("size", 224)
        return cls(
            size=int(size if isinstance(size, int) else size[0]),
            mean=tuple(config.get("mean", CLIP_MEAN)),
            std=tuple(config.get("std", CLIP_STD)),
            mode=config.get("resize_mode", "shortest"),
            interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
        )

    @classmethod
    def from_transformers(cls, config: Mapping[str, Any]) -> Preprocess:
        """From a transformers ``preprocessor_config.json`` that resizes the shortest edge and crops the centre."""
        crop, size = config.get("crop_size", config["size"]), config["size"]
        return cls(
            size=int(crop["height"] if isinstance(crop, Mapping) else crop),
            resize=int(size.get("shortest_edge", size.get("height", 0)) if isinstance(size, Mapping) else size),
            mean=tuple(config["image_mean"]),
            std=tuple(config["image_std"]),
            interpolation="bilinear" if config.get("resample") == 2 else "bicubic",
        )

    def __call__(self, images: torch.Tensor, device: torch.device | str, dtype: torch.dtype) -> torch.Tensor:
        """(B, 3, H, W) pictures in [-1, 1] -> (B, 3, size, size) of ``dtype`` on ``device``."""
        # Resizing in half precision would band; 64-pixel pictures and float32 cost nothing beside the model.
        images = self._crop(self._resize(images.to(device=device, dtype=torch.float32)))
        if any(value != 0.5 for value in (*self.mean, *self.std)):
            mean, std = (images.new_tensor(value).view(1, 3, 1, 1) for value in (self.mean, self.std))
            images = ((images + 1) / 2 - mean) / std
        return images.to(dtype)

    def _resize(self, images: torch.Tensor) -> torch.Tensor:
        sides = height, width = images.shape[-2], images.shape[-1]
        target = self.resize or self.size
        wanted = (target, target)
        if self.mode == "longest":
            scale = target / max(sides)
            wanted = max(1, round(height * scale)), max(1, round(width * scale))
        elif self.mode == "shortest" and height != width:
            wanted = (
                (target, int(width * target / height)) if height < width else (int(height * target / width), target)
            )
        if wanted == sides:
            return images
        # Bicubic overshoots at edges; PIL clips when it rounds to bytes.
        return F.interpolate(images, size=wanted, mode=self.interpolation, antialias=True).clamp(-1, 1)

    def _crop(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        down, across = max(0, self.size - height), max(0, self.size - width)
        if down or across:
            images = F.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2), value=-1.0)
        top, left = (round((side - self.size) / 2) for side in images.shape[-2:])
        return images[..., top : top + self.size, left : left + self.size]

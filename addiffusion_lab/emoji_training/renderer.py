"""Draws layouts of emoji sprites as images, batched, on any device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from addiffusion_env.backbones.emoji import WEIGHTS, verify
from addiffusion_env.errors import WeightsError
from addiffusion_env.prompts.emoji_vocabulary import CLASSES, COLORS, IMAGE_SIZE, MAX_OBJECTS

SPRITE_SIZE = 32
"""Height and width of a stored sprite, pixels."""

_COLOR_BYTES = {
    "red": (220, 38, 38),
    "orange": (245, 130, 32),
    "yellow": (250, 215, 50),
    "green": (40, 160, 60),
    "blue": (40, 90, 220),
    "purple": (130, 50, 190),
    "pink": (250, 130, 190),
    "brown": (120, 72, 35),
    "black": (32, 32, 36),
    "white": (245, 245, 245),
}

# Soft vertical gradients, (top, bottom); none is close to a named colour, so that sprites always have contrast.
_BACKGROUND_BYTES = (
    ((178, 208, 232), (120, 160, 120)),
    ((205, 195, 180), (170, 155, 135)),
    ((150, 170, 190), (110, 130, 155)),
    ((190, 205, 170), (150, 170, 130)),
    ((200, 180, 200), (160, 140, 165)),
    ((170, 170, 170), (135, 135, 135)),
    ((225, 205, 170), (195, 165, 125)),
    ((140, 180, 185), (105, 145, 150)),
)

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def load_sprites() -> np.ndarray:
    """The shipped sprites, checked against the manifest: (classes, 32, 32, 4) uint8 RGBA.

    Raises:
        WeightsError: for a missing or corrupted file.
    """
    with np.load(verify(WEIGHTS, "sprites") / "sprites.npz") as data:
        return data["sprites"]


def build_sprites(font: str | Path) -> np.ndarray:
    """Renders every class's emoji from a colour font, as the shipped sprites were.

    Args:
        font: path of ``NotoColorEmoji.ttf``; version 2.042 (Debian 12) reproduces the shipped sprites bit for bit.

    Returns:
        (classes, 32, 32, 4) uint8 RGBA; save with ``np.savez_compressed(path, sprites=...)``.

    Raises:
        WeightsError: when the font cannot be read or lacks a glyph.
    """
    from PIL import Image, ImageDraw, ImageFont

    try:
        face = ImageFont.truetype(str(font), 109)  # the only bitmap size in the font
    except OSError as error:
        raise WeightsError(f"no colour font at {font}: {error}", "install fonts-noto-color-emoji") from error
    sprites = []
    for item in CLASSES:
        page = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
        ImageDraw.Draw(page).text((8, 8), item.emoji, font=face, embedded_color=True)
        box = page.getbbox()
        if box is None:
            raise WeightsError(f"{font} has no glyph for {item.name!r} ({item.emoji})", "use Noto Color Emoji")
        glyph = page.crop(box)
        side = max(glyph.size)
        square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
        square.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
        sprites.append(np.asarray(square.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.LANCZOS)))
    return np.stack(sprites)


class Renderer:
    """Draws scenes: sprites, tinted in ten colours, over a soft background.

    Args:
        sprites: (classes, S, S, 4) uint8 RGBA; the shipped ones if ``None``.
        device: device that images are drawn on.

    Attributes:
        atlas: (classes, 11, 4, S, S) premultiplied RGBA in [0, 1]; colour 0 is the original.
    """

    def __init__(self, sprites: np.ndarray | None = None, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.atlas = _tinted_atlas(load_sprites() if sprites is None else sprites).to(self.device)
        self._backgrounds = torch.tensor(_BACKGROUND_BYTES, dtype=torch.float32, device=self.device) / 255
        centres = torch.arange(IMAGE_SIZE, device=self.device) + 0.5
        self._ys, self._xs = torch.meshgrid(centres, centres, indexing="ij")

    @torch.no_grad()
    def __call__(self, layouts: np.ndarray | torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draws layouts.

        Args:
            layouts: (B, n, 5) class (-1 for none), colour, centre x, centre y and size in pixels; later rows cover
                earlier ones.
            generator: draws the backgrounds; on the renderer's device.

        Returns:
            (B, 3, 64, 64) float32 images in [-1, 1].
        """
        rows = torch.as_tensor(layouts, device=self.device, dtype=torch.float32)
        image = self._draw_backgrounds(len(rows), generator)
        for index in range(rows.shape[1]):
            cls, color, x, y, size = (value.view(-1, 1, 1) for value in rows[:, index].unbind(1))
            sprite = self.atlas[cls.flatten().clamp_min(0).long(), color.flatten().clamp_min(0).long()]
            half = size.clamp_min(1) / 2
            grid = torch.stack([(self._xs - x) / half, (self._ys - y) / half], dim=-1)
            layer = F.grid_sample(sprite, grid, mode="bilinear", align_corners=False) * (cls >= 0).unsqueeze(1)
            image = image * (1 - layer[:, 3:]) + layer[:, :3]  # premultiplied "over"
        return image.clamp(0, 1) * 2 - 1

    def _draw_backgrounds(self, count: int, generator: torch.Generator | None) -> torch.Tensor:
        """A random gradient per image, with brightness jittered by up to 6 %; (B, 3, 64, 64) in [0, 1]."""
        chosen = torch.randint(len(self._backgrounds), (count,), device=self.device, generator=generator)
        top, bottom = (ends.view(count, 3, 1, 1) for ends in self._backgrounds[chosen].unbind(1))
        brightness = 1 + 0.12 * (torch.rand(count, 1, 1, 1, device=self.device, generator=generator) - 0.5)
        height = (self._ys / IMAGE_SIZE).view(1, 1, IMAGE_SIZE, IMAGE_SIZE)
        return (top * (1 - height) + bottom * height) * brightness


def _tinted_atlas(sprites: np.ndarray) -> torch.Tensor:
    """Each sprite in its original and in every named colour, shaded by its stretched luminance."""
    pixels = torch.tensor(sprites, dtype=torch.float32).permute(0, 3, 1, 2) / 255
    rgb, alpha = pixels[:, :3], pixels[:, 3:]
    luminance = (rgb * torch.tensor(_LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)
    visible = alpha > 0.1
    low = torch.where(visible, luminance, 1.0).amin((2, 3), keepdim=True)
    high = torch.where(visible, luminance, 0.0).amax((2, 3), keepdim=True)
    shade = ((luminance - low) / (high - low).clamp_min(0.05)).clamp(0, 1)
    bank = torch.stack([rgb, *(_tint(shade, name).clamp(0, 1) for name in COLORS)], dim=1)
    cover = alpha[:, None].expand(-1, bank.shape[1], -1, -1, -1)
    return torch.cat([bank * cover, cover], dim=2)


def _tint(shade: torch.Tensor, color: str) -> torch.Tensor:
    """(classes, 1, S, S) shade in [0, 1] -> (classes, 3, S, S) colour; white and black keep a contrast of 0.28."""
    if color == "white":
        return (0.72 + 0.28 * shade).expand(-1, 3, -1, -1)
    if color == "black":
        return (0.04 + 0.28 * shade).expand(-1, 3, -1, -1)
    rgb = torch.tensor(_COLOR_BYTES[color], dtype=torch.float32).view(1, 3, 1, 1) / 255
    return torch.where(shade < 0.5, rgb * (0.45 + 1.1 * shade), rgb + (1 - rgb) * (shade - 0.5) * 0.55)


def empty_layout(count: int = 1) -> np.ndarray:
    """``count`` empty layouts: (count, 4, 5) of -1."""
    return np.full((count, MAX_OBJECTS, 5), -1, np.float32)

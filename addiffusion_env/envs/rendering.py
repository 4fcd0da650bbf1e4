"""What an episode looks like: the preview over a strip of the actions taken, and film strips of whole episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from addiffusion_env.engine.process import Action

ACTION_COLOURS = {0: (70, 130, 200), 1: (200, 60, 60), 2: (240, 170, 30)}
"""Continue blue, stop red, refine amber: the same in frames, film strips and plots."""

FRAME_SIZE = 256
STRIP_HEIGHT = 40
CELL, BAR, CAPTION, COLUMNS = 96, 12, 14, 10
LETTERS = 12
"""Pixels of a film strip's letters."""
_INK, _PAPER = (32, 33, 36), (255, 255, 255)


@dataclass(frozen=True)
class Cell:
    """One frame of a film strip.

    Attributes:
        pixels: (h, w, 3) uint8, the preview that the action led to, or the finished picture.
        action: that led to it.
        preference: of the picture, in standard deviations; NaN where nobody looked.
        mask: (h', w') what a refinement drew again, in [0, 1]; ``None`` for every other action.
    """

    pixels: np.ndarray
    action: int
    preference: float = float("nan")
    mask: np.ndarray | None = None


def overlay_mask(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture with a region marked: tinted in refine's amber by the mask's strength, outlined where it is a half.

    Args:
        pixels: (h, w, 3) uint8.
        mask: (h', w') in [0, 1], of any resolution.

    Returns:
        (h, w, 3) uint8.
    """
    height, width = pixels.shape[:2]
    soft = Image.fromarray(np.asarray(mask, np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    strength = np.asarray(soft)[..., None].clip(0, 1)
    amber = np.array(ACTION_COLOURS[2], np.float32)
    tinted = pixels * (1 - 0.35 * strength) + amber * 0.35 * strength
    inside = strength[..., 0] >= 0.5
    around = np.pad(inside, 1, constant_values=False)
    core = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    tinted[inside & ~core] = amber
    return tinted.round().astype(np.uint8)


def render_frame(
    pixels: np.ndarray, actions: Sequence[int], nfe: float, text: str, mask: np.ndarray | None = None
) -> np.ndarray:
    """One frame: the preview, the action strip, and what was spent.

    Args:
        pixels: (h, w, 3) uint8 preview.
        actions: taken so far; one square each, coloured by :data:`ACTION_COLOURS`.
        nfe: evaluations spent.
        text: the prompt, cut to the frame's width.
        mask: (h', w') region that the last action drew again, to be marked; ``None`` for none.

    Returns:
        (296, 256, 3) uint8.
    """
    frame = Image.new("RGB", (FRAME_SIZE, FRAME_SIZE + STRIP_HEIGHT), (24, 24, 28))
    frame.paste(_enlarged(pixels, FRAME_SIZE, mask), (0, 0))
    draw = ImageDraw.Draw(frame)
    shown = actions[-(FRAME_SIZE - 8) // 3 :]  # the last ones, when there are more than fit
    size = max(3, min(12, (FRAME_SIZE - 8) // max(1, len(shown))))
    for place, action in enumerate(shown):
        left = 4 + place * size
        draw.rectangle((left, FRAME_SIZE + 4, left + size - 2, FRAME_SIZE + 4 + 10), fill=ACTION_COLOURS[int(action)])
    draw.text((4, FRAME_SIZE + 18), f"NFE {nfe:g}  {text}"[:42], fill=(235, 235, 235))
    return np.asarray(frame)


def draw_film(cells: Sequence[Cell], room: int | None = None, columns: int = COLUMNS) -> np.ndarray:
    """A film strip as one picture: cells in rows, a bar in the action's colour under each.

    Args:
        cells: in order.
        room: draw a sheet of so many cells whatever their number, the last ones where they are more, so that every
            strip of an environment has the same size, as videos ask; ``None`` is as large as needed.
        columns: cells a row.

    Returns:
        (H, W, 3) uint8; each cell is 122 pixels high and 96 wide.
    """
    room = max(1, len(cells) if room is None else room)
    height = CELL + BAR + CAPTION
    sheet = Image.new("RGB", (min(columns, room) * CELL, -(-room // columns) * height), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LETTERS)
    for place, cell in enumerate(cells[-room:]):
        left, top = (place % columns) * CELL, (place // columns) * height
        sheet.paste(_enlarged(cell.pixels, CELL - 4, cell.mask), (left + 2, top + 2))
        colour = ACTION_COLOURS[cell.action]
        draw.rectangle((left + 2, top + CELL, left + CELL - 3, top + CELL + BAR - 2), fill=colour)
        seen = "" if np.isnan(cell.preference) else f" {cell.preference:+.2f}"
        words = f"{Action(cell.action).name.lower()}{seen}"
        draw.text((left + 2, top + CELL + BAR - 2), words, fill=_INK, font=font)
    return np.asarray(sheet)


def tiled(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Frames of one size (H, W, 3) side by side, as near to a square as they go."""
    columns = int(np.ceil(np.sqrt(len(frames))))
    blank = [np.zeros_like(frames[0])] * (-len(frames) % columns)
    whole = [*frames, *blank]
    return np.concatenate([np.concatenate(whole[at : at + columns], 1) for at in range(0, len(whole), columns)])


def _enlarged(pixels: np.ndarray, size: int, mask: np.ndarray | None) -> Image.Image:
    large = Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST)
    return large if mask is None else Image.fromarray(overlay_mask(np.asarray(large), mask))

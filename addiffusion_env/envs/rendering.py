"""What an episode looks like: the preview over a strip of the actions taken."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

ACTION_COLOURS = {0: (70, 130, 200), 1: (200, 60, 60), 2: (240, 170, 30)}
"""Continue blue, stop red, refine amber: the same in frames, film strips and plots."""

FRAME_SIZE = 256
STRIP_HEIGHT = 40


def render_frame(pixels: np.ndarray, actions: Sequence[int], nfe: float, text: str) -> np.ndarray:
    """One frame: the preview, the action strip, and what was spent.

    Args:
        pixels: (h, w, 3) uint8 preview.
        actions: taken so far; one square each, coloured by :data:`ACTION_COLOURS`.
        nfe: evaluations spent.
        text: the prompt, cut to the frame's width.

    Returns:
        (296, 256, 3) uint8.
    """
    frame = Image.new("RGB", (FRAME_SIZE, FRAME_SIZE + STRIP_HEIGHT), (24, 24, 28))
    large = Image.fromarray(pixels).resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.NEAREST)
    frame.paste(large, (0, 0))
    draw = ImageDraw.Draw(frame)
    shown = actions[-(FRAME_SIZE - 8) // 3 :]  # the last ones, when there are more than fit
    size = max(3, min(12, (FRAME_SIZE - 8) // max(1, len(shown))))
    for place, action in enumerate(shown):
        left = 4 + place * size
        draw.rectangle((left, FRAME_SIZE + 4, left + size - 2, FRAME_SIZE + 4 + 10), fill=ACTION_COLOURS[int(action)])
    draw.text((4, FRAME_SIZE + 18), f"NFE {nfe:g}  {text}"[:42], fill=(235, 235, 235))
    return np.asarray(frame)

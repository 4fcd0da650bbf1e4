"""Small images for TensorBoard, drawn without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from addiffusion_env.envs.rendering import ACTION_COLOURS

CELL = 96
CAPTION = 14


def image_grid(images: Sequence[np.ndarray], nfe: Sequence[float], columns: int = 8) -> np.ndarray:
    """Finished images in a grid, each with its NFE below: (H, W, 3) uint8."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (columns * CELL, rows * (CELL + CAPTION)), (24, 24, 28))
    draw = ImageDraw.Draw(grid)
    for index, (image, spent) in enumerate(zip(images, nfe, strict=True)):
        left, top = (index % columns) * CELL, (index // columns) * (CELL + CAPTION)
        grid.paste(Image.fromarray(image).resize((CELL - 2, CELL - 2)), (left + 1, top + 1))
        draw.text((left + 4, top + CELL), f"NFE {spent:g}", fill=(235, 235, 235))
    return np.asarray(grid)


def timelines(actions: Sequence[Sequence[int]], size: int = 12) -> np.ndarray:
    """One row per episode, one square per action, in the usual action colours: (H, W, 3) uint8."""
    longest = max(len(row) for row in actions)
    canvas = np.full((len(actions) * size, longest * size, 3), 24, dtype=np.uint8)
    for row, taken in enumerate(actions):
        for column, action in enumerate(taken):
            block = (slice(row * size, (row + 1) * size - 1), slice(column * size, (column + 1) * size - 1))
            canvas[block] = ACTION_COLOURS[int(action)]
    return canvas

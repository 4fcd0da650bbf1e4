"""Drawing of episodes: frames, filmstrips, a window; :class:`.envs.env.View` chooses by render mode."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from addiffusion_env.engine.process import Action
from addiffusion_env.errors import ConfigError, MissingPackageError

ACTION_COLOURS = {0: (70, 130, 200), 1: (200, 60, 60), 2: (240, 170, 30)}
"""Continue blue, stop red, refine amber: the same in frames, filmstrips and plots."""

FRAME_SIZE = 256
STRIP_HEIGHT = 40
CELL, BAR, CAPTION, COLUMNS = 96, 12, 14, 10
LETTERS = 12
"""Font size of a filmstrip's captions, in pixels."""
_INK, _PAPER = (32, 33, 36), (255, 255, 255)


@dataclass(frozen=True)
class Cell:
    """One frame of a filmstrip.

    Attributes:
        pixels: (h, w, 3) uint8, the preview after the action, or the finished image.
        action: the action that led to it.
        preference: its preference score, in standard deviations; NaN if it was not scored.
        mask: (h', w') region that a refinement regenerated, in [0, 1]; ``None`` for other actions.
    """

    pixels: np.ndarray
    action: int
    preference: float = float("nan")
    mask: np.ndarray | None = None


def overlay_mask(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Marks a region of an image: tinted amber in proportion to the mask, with the outline of mask >= 0.5.

    Args:
        pixels: (h, w, 3) uint8.
        mask: (h', w') in [0, 1], at any resolution.

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
    """Draws one frame: the preview, the action strip, and the NFE spent.

    Args:
        pixels: (h, w, 3) uint8 preview.
        actions: the actions so far; one square each, coloured by :data:`ACTION_COLOURS`.
        nfe: number of function evaluations so far.
        text: the prompt, truncated to the frame's width.
        mask: (h', w') region that the last action regenerated, which is marked; ``None`` for none.

    Returns:
        (296, 256, 3) uint8.
    """
    frame = Image.new("RGB", (FRAME_SIZE, FRAME_SIZE + STRIP_HEIGHT), (24, 24, 28))
    frame.paste(_enlarged(pixels, FRAME_SIZE, mask), (0, 0))
    draw = ImageDraw.Draw(frame)
    shown = actions[-(FRAME_SIZE - 8) // 3 :]  # the last ones, if not all fit
    size = max(3, min(12, (FRAME_SIZE - 8) // max(1, len(shown))))
    for place, action in enumerate(shown):
        left = 4 + place * size
        draw.rectangle((left, FRAME_SIZE + 4, left + size - 2, FRAME_SIZE + 4 + 10), fill=ACTION_COLOURS[int(action)])
    draw.text((4, FRAME_SIZE + 18), f"NFE {nfe:g}  {text}"[:42], fill=(235, 235, 235))
    return np.asarray(frame)


def draw_filmstrip(cells: Sequence[Cell], room: int | None = None, columns: int = COLUMNS) -> np.ndarray:
    """Draws a filmstrip as one image: cells in rows, with a bar in the action's colour under each.

    Args:
        cells: in order.
        room: number of cells to reserve, so that all filmstrips of an environment have the same size, as videos
            require; of more cells the last ones are shown. ``None`` for as many as there are.
        columns: cells per row.

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
        score = "" if np.isnan(cell.preference) else f" {cell.preference:+.2f}"
        caption = f"{Action(cell.action).name.lower()}{score}"
        draw.text((left + 2, top + CELL + BAR - 2), caption, fill=_INK, font=font)
    return np.asarray(sheet)


def tiled(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Arranges frames of one size (H, W, 3) in a grid that is as square as possible."""
    columns = int(np.ceil(np.sqrt(len(frames))))
    blank = [np.zeros_like(frames[0])] * (-len(frames) % columns)
    cells = [*frames, *blank]
    return np.concatenate([np.concatenate(cells[at : at + columns], 1) for at in range(0, len(cells), columns)])


def _enlarged(pixels: np.ndarray, size: int, mask: np.ndarray | None) -> Image.Image:
    large = Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST)
    return large if mask is None else Image.fromarray(overlay_mask(np.asarray(large), mask))


DRIVERS = ("SDL_VIDEODRIVER", "SDL_VIDEO_DRIVER")
"""Environment variables that select SDL's video driver; if one is set, its choice is accepted without checks."""


class Window:
    """A window that shows the latest frame.

    Args:
        title: title of the window.
        fps: maximum number of frames per second; :meth:`show` waits if necessary.

    Raises:
        MissingPackageError: if pygame is not installed.
        ConfigError: if there is no screen.
    """

    def __init__(self, title: str, fps: int) -> None:
        self._pygame = _pygame()
        self._fps = fps
        self._screen: Any = None
        _open_display(self._pygame)
        self._pygame.display.set_caption(title)
        self._clock = self._pygame.time.Clock()

    def show(self, frame: np.ndarray) -> None:
        """Shows a frame, (H, W, 3) uint8; the window is resized to it."""
        pygame = self._pygame
        if self._screen is None or self._screen.get_size() != frame.shape[1::-1]:
            self._screen = pygame.display.set_mode(frame.shape[1::-1])
        self._screen.blit(pygame.surfarray.make_surface(frame.swapaxes(0, 1)), (0, 0))
        pygame.event.pump()  # lets the system move and repaint the window
        pygame.display.flip()
        self._clock.tick(self._fps)

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8: the content of the window."""
        return self._pygame.surfarray.array3d(self._screen).swapaxes(0, 1)

    def close(self) -> None:
        """Closes the window; may be called more than once."""
        self._pygame.display.quit()


def _pygame() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
    except ImportError as error:
        raise MissingPackageError(
            "render_mode='human' needs pygame, which is not installed",
            "pip install 'addiffusion-env[render]', or use render_mode='rgb_array'",
        ) from error
    return pygame


def _open_display(pygame: Any) -> None:
    remedy = "use render_mode='rgb_array' or 'filmstrip', or set DISPLAY to a screen (xvfb-run makes one)"
    try:
        pygame.display.init()
    except pygame.error as error:
        raise ConfigError(f"render_mode='human' needs a screen: {error}", remedy) from error
    # Without a screen SDL silently falls back to a driver that draws into memory.
    offscreen = pygame.display.get_driver() in ("offscreen", "dummy")
    if offscreen and not any(os.environ.get(name) for name in DRIVERS):
        pygame.display.quit()
        raise ConfigError("render_mode='human' needs a screen, and none was found", remedy)

"""A window on the screen for ``render_mode="human"``, drawn with pygame as Gymnasium's own environments are."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from addiffusion_env.errors import ConfigError, MissingPackageError

DRIVERS = ("SDL_VIDEODRIVER", "SDL_VIDEO_DRIVER")
"""Environment variables by which a user picks SDL's output; with one set, what it names is taken as it is."""


class Window:
    """Shows frames, the newest in place of the one before.

    Args:
        title: of the window.
        fps: most frames a second; showing waits for its turn.

    Raises:
        MissingPackageError: without pygame.
        ConfigError: where there is no screen.
    """

    def __init__(self, title: str, fps: int) -> None:
        self._pygame = _pygame()
        self._fps = fps
        self._screen: Any = None
        _open_display(self._pygame)
        self._pygame.display.set_caption(title)
        self._clock = self._pygame.time.Clock()

    def show(self, frame: np.ndarray) -> None:
        """Draws a frame, (H, W, 3) uint8; the window takes the size of the first."""
        pygame = self._pygame
        if self._screen is None or self._screen.get_size() != frame.shape[1::-1]:
            self._screen = pygame.display.set_mode(frame.shape[1::-1])
        self._screen.blit(pygame.surfarray.make_surface(frame.swapaxes(0, 1)), (0, 0))
        pygame.event.pump()  # lets the system move and repaint the window
        pygame.display.flip()
        self._clock.tick(self._fps)

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8: what the window shows."""
        return self._pygame.surfarray.array3d(self._screen).swapaxes(0, 1)

    def close(self) -> None:
        """Closes it; safe to call twice."""
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
    remedy = "use render_mode='rgb_array' or 'film', or set DISPLAY to a screen (xvfb-run makes one)"
    try:
        pygame.display.init()
    except pygame.error as error:
        raise ConfigError(f"render_mode='human' needs a screen: {error}", remedy) from error
    # Without a screen SDL falls back to drawing into memory, where nobody would see it.
    unseen = pygame.display.get_driver() in ("offscreen", "dummy")
    if unseen and not any(os.environ.get(name) for name in DRIVERS):
        pygame.display.quit()
        raise ConfigError("render_mode='human' needs a screen, and none was found", remedy)

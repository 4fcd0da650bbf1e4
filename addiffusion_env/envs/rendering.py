"""How episodes are shown: frames, filmstrips, a window."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from addiffusion_env.engine.process import Action
from addiffusion_env.envs.episodes import Episodes
from addiffusion_env.envs.slot import longest_episode
from addiffusion_env.errors import ConfigError, MissingPackageError

ACTION_COLOURS = {0: (70, 130, 200), 1: (200, 60, 60), 2: (240, 170, 30)}
"""Continue blue, stop red, refine amber: the same in frames, filmstrips and plots."""

FRAME_SIZE = 256
STRIP_HEIGHT = 40
CELL, BAR, CAPTION, COLUMNS = 96, 12, 14, 10
LETTERS = 12
"""Pixels of a filmstrip's letters."""
_INK, _PAPER = (32, 33, 36), (255, 255, 255)


@dataclass(frozen=True)
class Cell:
    """One frame of a filmstrip.

    Attributes:
        pixels: (h, w, 3) uint8, the preview that the action led to, or the finished image.
        action: that led to it.
        preference: of the image, in standard deviations; NaN where nobody looked.
        mask: (h', w') what a refinement drew again, in [0, 1]; ``None`` for every other action.
    """

    pixels: np.ndarray
    action: int
    preference: float = float("nan")
    mask: np.ndarray | None = None


def overlay_mask(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image with a region marked: tinted in refine's amber by the mask's strength, outlined where it is a half.

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


def draw_filmstrip(cells: Sequence[Cell], room: int | None = None, columns: int = COLUMNS) -> np.ndarray:
    """A filmstrip as one image: cells in rows, a bar in the action's colour under each.

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
    remedy = "use render_mode='rgb_array' or 'filmstrip', or set DISPLAY to a screen (xvfb-run makes one)"
    try:
        pygame.display.init()
    except pygame.error as error:
        raise ConfigError(f"render_mode='human' needs a screen: {error}", remedy) from error
    # Without a screen SDL falls back to drawing into memory, where nobody would see it.
    unseen = pygame.display.get_driver() in ("offscreen", "dummy")
    if unseen and not any(os.environ.get(name) for name in DRIVERS):
        pygame.display.quit()
        raise ConfigError("render_mode='human' needs a screen, and none was found", remedy)


MOST_CELLS = 60
"""Cells of the largest filmstrip; of a longer episode it shows the end."""


class View:
    """What :meth:`render` of an environment gives, by its render mode.

    Args:
        episodes: what is shown.
        mode: one of :data:`addiffusion_env.envs.settings.RENDER_MODES`, or ``None``: then nothing is kept or drawn.
            A mode's name with ``_list`` collects the frames of every reset and step until they are asked for, as
            Gymnasium's ``RenderCollection`` does.
        fps: of the window.

    Attributes:
        filmstrips: cells of each lane's filmstrip.
        over: whether that is of an episode that has ended.
    """

    def __init__(self, episodes: Episodes, mode: str | None, fps: int) -> None:
        self.episodes = episodes
        self.mode = None if mode is None else mode.removesuffix("_list")
        self.collected: list[list[np.ndarray]] | None = None if mode == self.mode else []
        self.fps = fps
        self.window: Window | None = None
        self._room = min(MOST_CELLS, longest_episode(episodes.process))
        self.filmstrips: list[list[Cell]] = [[] for _ in episodes.slots]
        self.over = [False for _ in episodes.slots]

    def reset(self, lanes: Iterable[int] | None = None) -> None:
        """Told after a reset of some lanes; ``None`` for all of them."""
        if lanes is None and self.collected is not None:
            self.collected = []
        for index in range(len(self.filmstrips)) if lanes is None else lanes:
            self.filmstrips[index] = []
            self.over[index] = False
        self.show()

    def stepped(self, index: int, over: bool) -> None:
        """Told after lane ``index`` took an action, before its next episode begins: keeps a filmstrip's next cell."""
        if self.mode != "filmstrip":
            return
        if self.over[index]:  # the filmstrip of an episode stays until the next one has something to show
            self.filmstrips[index] = []
        self.over[index] = over
        lane = self.episodes.lane(index)
        preference = float("nan") if lane.scores is None else float(lane.scores.preference[0])
        self.filmstrips[index].append(Cell(self.episodes.pixels(index), lane.actions[-1], preference, lane.refine_mask))

    def frames(self) -> list[np.ndarray]:
        """One image a lane, all of one size: (296, 256, 3) uint8, or a filmstrip in mode ``filmstrip``."""
        if self.mode == "filmstrip":
            return [draw_filmstrip(cells, self._room) for cells in self.filmstrips]
        lanes = [self.episodes.lane(index) for index in range(len(self.filmstrips))]
        return [
            render_frame(self.episodes.pixels(index), lane.actions, lane.nfe, lane.prompt.text, lane.refine_mask)
            for index, lane in enumerate(lanes)
        ]

    def render(self) -> list[Any]:
        """What one call of ``render`` gives each lane: a frame, or the list of those collected since the last call."""
        if self.collected is None:
            return list(self.frames())
        frames, self.collected = self.collected, []
        return [list(lane) for lane in zip(*frames, strict=True)] or [[] for _ in self.filmstrips]

    def show(self) -> None:
        """Told at the end of every reset and step: draws to the window in mode ``human``, collects in ``_list`` modes.

        Raises:
            MissingPackageError: without pygame.
            ConfigError: where there is no screen.
        """
        if self.collected is not None:
            self.collected.append(self.frames())
        if self.mode != "human":
            return
        if self.window is None:
            self.window = Window("AdDiffusion", self.fps)
        self.window.show(tiled(self.frames()))

    def __getstate__(self) -> dict[str, Any]:
        """Without the window, which belongs to its process."""
        return {**self.__dict__, "window": None}

    def close(self) -> None:
        """Closes the window, if there is one."""
        if self.window is not None:
            self.window.close()
            self.window = None

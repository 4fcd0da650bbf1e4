"""How an environment is shown, for one lane or many: frames, film strips, a window."""

from __future__ import annotations

import numpy as np

from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.envs.episodes import Episodes
from addiffusion_env.envs.rendering import Cell, draw_film, render_frame, tiled
from addiffusion_env.envs.window import Window

MOST_CELLS = 60
"""Cells of the largest film strip; of a longer episode it shows the end."""


class View:
    """What :meth:`render` of an environment gives, by its render mode.

    Args:
        episodes: what is shown.
        mode: one of :data:`addiffusion_env.envs.settings.RENDER_MODES`, or ``None``: then nothing is kept or drawn.
        fps: of the window.
    """

    def __init__(self, episodes: Episodes, mode: str | None, fps: int) -> None:
        self.episodes = episodes
        self.mode = mode
        self.fps = fps
        self.window: Window | None = None
        self._room = min(MOST_CELLS, longest_episode(episodes.process))
        self._films: list[list[Cell]] = [[] for _ in episodes.slots]
        self._over = [False for _ in episodes.slots]

    def reset(self) -> None:
        """Told after a reset of every lane."""
        self._films = [[] for _ in self._films]
        self.show()

    def stepped(self, index: int, over: bool) -> None:
        """Told after lane ``index`` took an action, before its next episode begins: keeps a film's next cell."""
        if self.mode != "film":
            return
        if self._over[index]:  # the film of an episode stays until the next one has something to show
            self._films[index] = []
        self._over[index] = over
        lane = self.episodes.lane(index)
        preference = float("nan") if lane.look is None else float(lane.look.preference[0])
        self._films[index].append(Cell(self.episodes.pixels(index), lane.actions[-1], preference, lane.refine_mask))

    def frames(self) -> list[np.ndarray]:
        """One picture a lane, all of one size: (296, 256, 3) uint8, or a film strip in mode ``film``."""
        if self.mode == "film":
            return [draw_film(cells, self._room) for cells in self._films]
        lanes = [self.episodes.lane(index) for index in range(len(self._films))]
        return [
            render_frame(self.episodes.pixels(index), lane.actions, lane.nfe, lane.prompt.text, lane.refine_mask)
            for index, lane in enumerate(lanes)
        ]

    def show(self) -> None:
        """Draws to the window in mode ``human``; does nothing in others.

        Raises:
            MissingPackageError: without pygame.
            ConfigError: where there is no screen.
        """
        if self.mode != "human":
            return
        if self.window is None:
            self.window = Window("AdDiffusion", self.fps)
        self.window.show(tiled(self.frames()))

    def close(self) -> None:
        """Closes the window, if there is one."""
        if self.window is not None:
            self.window.close()
            self.window = None


def longest_episode(process: ProcessConfig) -> int:
    """Decisions of an episode that takes every step and every refinement."""
    once = sum(process.decides(step) for step in range(1, process.steps)) + 1
    if not process.refine.enabled:
        return once
    back = process.refine.return_to
    ahead = 0 if back is None else sum(process.decides(step) for step in range(back + 1, process.steps)) + 1
    return once + process.refine.limit * (1 + ahead)

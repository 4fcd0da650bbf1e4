"""How an environment is shown, for one lane or many: frames, film strips, a window."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from addiffusion_env.envs.episodes import Episodes
from addiffusion_env.envs.infos import longest_episode
from addiffusion_env.envs.rendering import Cell, draw_film, render_frame, tiled
from addiffusion_env.envs.window import Window

MOST_CELLS = 60
"""Cells of the largest film strip; of a longer episode it shows the end."""


class View:
    """What :meth:`render` of an environment gives, by its render mode.

    Args:
        episodes: what is shown.
        mode: one of :data:`addiffusion_env.envs.settings.RENDER_MODES`, or ``None``: then nothing is kept or drawn.
            A mode's name with ``_list`` collects the frames of every reset and step until they are asked for, as
            Gymnasium's ``RenderCollection`` does.
        fps: of the window.

    Attributes:
        films: cells of each lane's film strip.
        over: whether that is of an episode that has ended.
    """

    def __init__(self, episodes: Episodes, mode: str | None, fps: int) -> None:
        self.episodes = episodes
        self.mode = None if mode is None else mode.removesuffix("_list")
        self.collected: list[list[np.ndarray]] | None = None if mode == self.mode else []
        self.fps = fps
        self.window: Window | None = None
        self._room = min(MOST_CELLS, longest_episode(episodes.process))
        self.films: list[list[Cell]] = [[] for _ in episodes.slots]
        self.over = [False for _ in episodes.slots]

    def reset(self, lanes: Iterable[int] | None = None) -> None:
        """Told after a reset of some lanes; ``None`` for all of them."""
        if lanes is None and self.collected is not None:
            self.collected = []
        for index in range(len(self.films)) if lanes is None else lanes:
            self.films[index] = []
            self.over[index] = False
        self.show()

    def stepped(self, index: int, over: bool) -> None:
        """Told after lane ``index`` took an action, before its next episode begins: keeps a film's next cell."""
        if self.mode != "film":
            return
        if self.over[index]:  # the film of an episode stays until the next one has something to show
            self.films[index] = []
        self.over[index] = over
        lane = self.episodes.lane(index)
        preference = float("nan") if lane.look is None else float(lane.look.preference[0])
        self.films[index].append(Cell(self.episodes.pixels(index), lane.actions[-1], preference, lane.refine_mask))

    def frames(self) -> list[np.ndarray]:
        """One picture a lane, all of one size: (296, 256, 3) uint8, or a film strip in mode ``film``."""
        if self.mode == "film":
            return [draw_film(cells, self._room) for cells in self.films]
        lanes = [self.episodes.lane(index) for index in range(len(self.films))]
        return [
            render_frame(self.episodes.pixels(index), lane.actions, lane.nfe, lane.prompt.text, lane.refine_mask)
            for index, lane in enumerate(lanes)
        ]

    def render(self) -> list[Any]:
        """What one call of ``render`` gives each lane: a frame, or the list of those collected since the last call."""
        if self.collected is None:
            return list(self.frames())
        frames, self.collected = self.collected, []
        return [list(lane) for lane in zip(*frames, strict=True)] or [[] for _ in self.films]

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

"""The scalar environment, one image per episode, and what it shares with the vectorised ones: snapshots, rendering."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from addiffusion_env.backbones.fingerprint import digest_of
from addiffusion_env.envs.episodes import Episodes
from addiffusion_env.envs.settings import RENDER_MODES, EnvSettings
from addiffusion_env.envs.slot import ActionSpace, Slot, info_of
from addiffusion_env.prompts import PromptList

if TYPE_CHECKING:
    from addiffusion_env.envs.rendering import Cell, Window

Observation = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of an environment, for :meth:`Restorable.restore`. Cheap: its tensors are shared, not copied.

    Attributes:
        slots: the state of every lane, immutable.
        filmstrips: cells of the filmstrips, in mode ``filmstrip``.
        over: whether a lane's filmstrip shows an episode that has ended.
    """

    slots: tuple[Slot | None, ...]
    filmstrips: tuple[tuple[Cell, ...], ...]
    over: tuple[bool, ...]


class Restorable:
    """Mixin of the three environments: snapshots, state dicts, identity."""

    episodes: Episodes
    view: View

    def identity(self) -> dict[str, Any]:
        """Identity of the backbone, scorers, process, reward and prompts; see :func:`.identity_of`."""
        from addiffusion_env.backbones.identity import described, identity_of

        episodes = self.episodes
        prompts = episodes.source.prompts if isinstance(episodes.source, PromptList) else episodes.source.name
        return identity_of(
            backbone=episodes.backbone,
            scorers=episodes.scorers,
            process=episodes.process,
            reward=episodes.reward,
            prompts=digest_of(described(prompts)),
        )

    def snapshot(self) -> Snapshot:
        """The current state as a value, for tree search: :meth:`restore` returns to it any number of times.

        The state of wrappers is not included (Gymnasium's ``TimeLimit`` keeps counting): use the setting
        ``max_decisions`` instead.
        """
        filmstrips = tuple(tuple(cells) for cells in self.view.filmstrips)
        return Snapshot(tuple(self.episodes.slots), filmstrips, tuple(self.view.over))

    def restore(self, snapshot: Snapshot) -> None:
        """Restores a snapshot of this environment, or of another one with the same settings.

        The count of dropped episodes (``max_faults``) is not restored.

        Raises:
            ResumeError: if the snapshot has a different number of lanes.
        """
        self.episodes.check_lanes("snapshot", len(snapshot.slots))
        self.episodes.slots = list(snapshot.slots)
        self.view.filmstrips = [list(cells) for cells in snapshot.filmstrips]
        self.view.over = list(snapshot.over)

    def state_dict(self) -> dict[str, Any]:
        """The same as plain tensors, numbers and strings, for a file: see :meth:`Episodes.state_dict`."""
        return self.episodes.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ResumeError: if the state has a different number of lanes.
        """
        self.episodes.load_state_dict(state)


class AdDiffusionEnv(Restorable, gym.Env[Observation, np.int64]):
    """The denoising loop of a text-to-image model as a Markov decision process.

    At each decision the agent may *continue* (0: a standard step), *stop* (1: early exit in a few evaluations) or
    *refine* (2: regenerate a region). The episode terminates with the finished image; ``max_decisions`` truncates it.

    Observation: ``Dict(clip, timestep, quality)``, float32 in [-1, 1]; see
    :mod:`addiffusion_env.observations.features`. With a cost per NFE range there is a fourth key, ``cost_per_nfe``.

    ``info`` has the same keys, shapes and types from reset to the end, so that any buffer can store it: prompt,
    prompt_id, task, seed, sigma, step, nfe, network_calls, refinements, cost_per_nfe; clip_score and preference of the
    last scored image (0 while ``has_scores`` is false); the last action (-1 after a reset), illegal_action,
    reward_terms (name -> float); action_trace, the actions so far, int8, padded with -1; image, (H, W, 3) uint8, zeros
    until the episode has ended with an image (``has_image``); fault, why the episode was dropped, or "". Where *refine*
    can regenerate a region also refine_mask, (h, w) float32 in [0, 1] at the latents' resolution, zeros unless the last
    action did so.

    Args:
        **settings: the fields of :class:`addiffusion_env.envs.settings.EnvSettings`.

    >>> import gymnasium as gym, addiffusion_env
    >>> env = gym.make("AdDiffusion-Emoji-v2")
    >>> observation, info = env.reset(seed=0)
    >>> sorted((key, value.shape) for key, value in observation.items())
    [('correctness', (4,)), ('cost_per_nfe', (1,)), ('prior', (1,)), ('spent', (3,)), ('timestep', (128,))]
    >>> observation, reward, terminated, truncated, info = env.step(1)  # an early exit, whose image is scored
    >>> terminated, float(info["nfe"]), info["image"].shape
    (False, 1.5, (64, 64, 3))
    """

    metadata = {"render_modes": [*RENDER_MODES], "render_fps": 4}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(self, **settings: Any) -> None:
        self.settings = EnvSettings.of(**settings)
        self.episodes = Episodes(self.settings, 1)
        self.observation_space: gym.spaces.Dict = self.episodes.observer.space  # type: ignore[assignment]
        self.action_space = ActionSpace()
        self.render_mode = self.settings.render_mode
        self.view = View(self.episodes, self.render_mode, self.metadata["render_fps"])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode.

        Args:
            seed: the environment's seed; determines the prompt and noise of this and all following episodes.
            options: ``prompt`` (text) and ``prompt_id`` set the prompt, ``seed`` the image's noise, ``cost_per_nfe``
                the cost per NFE.
        """
        super().reset(seed=seed)
        if seed is None and self.episodes.slots[0] is None:
            seed = int(self.np_random.integers(2**31))
        info = self.episodes.begin(0, seed, options)
        self.view.reset()
        return self._row(self.episodes.observe()), info

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes an action.

        Raises:
            IllegalActionError: for a value that is not an action (a number, or an array or tensor that holds one); in
                strict mode also for a masked action.
            EpisodeOverError: before ``reset`` or after the end.
        """
        result = self.episodes.step(action)
        self.view.stepped(0, bool(result.terminated[0] or result.truncated[0]))
        self.view.show()
        return (
            self._row(result.observation),
            float(result.reward[0]),
            bool(result.terminated[0]),
            bool(result.truncated[0]),
            info_of(result.infos, 0),
        )

    def action_masks(self) -> np.ndarray:
        """(3,) bool: which actions are legal now, as sb3-contrib's MaskablePPO expects.

        ``action_space.sample(mask=...)`` accepts it. Gymnasium's wrappers do not forward methods: on a wrapped
        environment call ``env.get_wrapper_attr("action_masks")()``.
        """
        return self.episodes.action_masks()[0]

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Renders the episode according to the render mode.

        Returns:
            ``rgb_array``: the preview above the action strip, a refined region marked, (296, 256, 3) uint8.
            ``filmstrip``: the filmstrip of the episode so far, one cell of 122 by 96 per decision, of constant size.
            ``None`` in mode ``human``, whose window is updated by ``reset`` and ``step``, and without a mode.
        """
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render_mode; pass render_mode='rgb_array' to make()")
            return None
        return None if self.render_mode == "human" else self.view.render()[0]

    def close(self) -> None:
        """Closes the window of mode ``human``."""
        self.view.close()

    @staticmethod
    def _row(observation: Observation) -> Observation:
        return {key: value[0] for key, value in observation.items()}


MOST_CELLS = 60
"""Maximum number of cells of a filmstrip; of a longer episode it shows the end."""


class View:
    """Renders the lanes of an environment in its render mode, if it has one, with :mod:`.envs.rendering`.

    Args:
        episodes: the episodes to render.
        mode: one of :data:`addiffusion_env.envs.settings.RENDER_MODES`, or ``None`` for no rendering. A mode with the
            suffix ``_list`` collects the frames of every reset and step until :meth:`render` returns them, as
            Gymnasium's ``RenderCollection`` does.
        fps: maximum frame rate of the window.

    Attributes:
        filmstrips: cells of each lane's filmstrip.
        over: whether each lane's filmstrip shows an episode that has ended.
    """

    def __init__(self, episodes: Episodes, mode: str | None, fps: int) -> None:
        self.episodes = episodes
        self.mode = None if mode is None else mode.removesuffix("_list")
        self.collected: list[list[np.ndarray]] | None = None if mode == self.mode else []
        self.fps = fps
        self.window: Window | None = None
        self._room = min(MOST_CELLS, episodes.process.longest_episode)
        self.filmstrips: list[list[Cell]] = [[] for _ in episodes.slots]
        self.over = [False for _ in episodes.slots]

    def reset(self, lanes: Iterable[int] | None = None) -> None:
        """Called after a reset of some lanes; ``None`` for all of them."""
        if lanes is None and self.collected is not None:
            self.collected = []
        for index in range(len(self.filmstrips)) if lanes is None else lanes:
            self.filmstrips[index] = []
            self.over[index] = False
        self.show()

    def stepped(self, index: int, over: bool) -> None:
        """Called after an action of lane ``index``, before its next episode begins: adds a cell to its filmstrip."""
        if self.mode != "filmstrip":
            return
        if self.over[index]:  # the filmstrip of an episode is kept until the next episode has its first cell
            self.filmstrips[index] = []
        self.over[index] = over
        from addiffusion_env.envs.rendering import Cell

        lane = self.episodes.lane(index)
        preference = float("nan") if lane.scores is None else float(lane.scores.preference[0])
        self.filmstrips[index].append(Cell(self.episodes.pixels(index), lane.actions[-1], preference, lane.refine_mask))

    def frames(self) -> list[np.ndarray]:
        """One frame per lane, all of one size: (296, 256, 3) uint8, or a filmstrip in mode ``filmstrip``."""
        from addiffusion_env.envs.rendering import draw_filmstrip, render_frame

        if self.mode == "filmstrip":
            return [draw_filmstrip(cells, self._room) for cells in self.filmstrips]
        lanes = [self.episodes.lane(index) for index in range(len(self.filmstrips))]
        return [
            render_frame(self.episodes.pixels(index), lane.actions, lane.nfe, lane.prompt.text, lane.refine_mask)
            for index, lane in enumerate(lanes)
        ]

    def render(self) -> list[Any]:
        """One entry per lane: a frame, or in a ``_list`` mode the frames collected since the last call."""
        if self.collected is None:
            return list(self.frames())
        frames, self.collected = self.collected, []
        return [list(lane) for lane in zip(*frames, strict=True)] or [[] for _ in self.filmstrips]

    def show(self) -> None:
        """Called at the end of every reset and step: updates the window in mode ``human``, collects in ``_list`` modes.

        Raises:
            MissingPackageError: if pygame is not installed.
            ConfigError: if there is no screen.
        """
        if self.collected is not None:
            self.collected.append(self.frames())
        if self.mode == "human":
            from addiffusion_env.envs.rendering import Window, tiled

            self.window = self.window or Window("AdDiffusion", self.fps)
            self.window.show(tiled(self.frames()))

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: without the window, which belongs to its process."""
        return {**self.__dict__, "window": None}

    def close(self) -> None:
        """Closes the window, if there is one."""
        if self.window is not None:
            self.window.close()
            self.window = None

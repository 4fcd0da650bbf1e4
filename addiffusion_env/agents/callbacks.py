"""Training callbacks: log episodes to TensorBoard and write checkpoints to disk."""

from __future__ import annotations

import signal
import warnings
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, Image, TensorBoardOutputFormat

from addiffusion_env.agents.checkpoints import Snapshot
from addiffusion_env.engine.process import Action
from addiffusion_env.envs.rendering import ACTION_COLOURS
from addiffusion_env.errors import RunFolderError

PICTURES_EVERY = 256
"""Decisions between two grids of images in TensorBoard, where a rollout is shorter: DQN's takes a few."""

IMAGES, COLUMNS = 16, 4
"""Number of most recent images in the grid, and its columns."""

WINDOW = 200
"""Number of most recent episodes that the means are taken over."""

CELL, CAPTION = 96, 14
"""Pixels of an image in such a grid, and of the line below it."""


class EpisodeLog(BaseCallback):
    """Logs finished episodes: ``env/nfe``, ``env/quality``, action shares, images, timelines, hyperparameters.

    On Ray also the failures of workers: ``rollouts/deaths``, ``rollouts/hangs``, ``rollouts/lost_episodes``.

    Args:
        hyperparameters: shown in TensorBoard's HPARAMS tab next to the last return and NFE.

    Attributes:
        faults: number of dropped episodes (reason in ``info["fault"]``); they enter no mean.
        prompt_ids: ids of all prompts used by episodes, including those before a resume.
    """

    def __init__(self, hyperparameters: dict[str, Any]) -> None:
        super().__init__()
        self.hyperparameters = hyperparameters
        self.episodes: deque[dict[str, Any]] = deque(maxlen=WINDOW)
        self.images: deque[tuple[np.ndarray, dict[str, Any]]] = deque(maxlen=IMAGES)
        self.terms: Counter[str] = Counter()
        self.decisions = 0
        self.faults = 0
        self._pictured = -PICTURES_EVERY
        self.prompt_ids: set[str] = set()

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Restores the log from a checkpoint's state, if there is one; older checkpoints hold no prompt ids."""
        if state is not None:
            self.episodes.extend(state["episodes"])
            self.prompt_ids.update(state.get("prompt_ids", ()))

    def _on_training_start(self) -> None:
        shown = {
            key: value for key, value in self.hyperparameters.items() if isinstance(value, int | float | str | bool)
        }
        metrics = {"rollout/ep_rew_mean": 0.0, "env/nfe": 0.0, "env/quality": 0.0}
        self.logger.record("hparams", HParam(shown, metrics), exclude=("stdout", "log", "json", "csv"))

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            self.decisions += 1
            self.terms.update(info.get("reward_terms", {}))
            self.prompt_ids.update([info["prompt_id"]] if "prompt_id" in info else [])
            self.faults += bool(info.get("fault"))
            if info.get("fault") or info.get("worker_lost"):
                info.pop("episode", None)  # a partial return would be averaged with complete ones
            if not info.get("has_image"):
                continue
            actions = [int(action) for action in info["action_trace"] if action >= 0]
            episode = {
                "nfe": float(info["nfe"]),
                "quality": float(info["preference"]),
                "calls": info["network_calls"],
                "actions": actions,
                "task": info["task"],
                "cost_per_nfe": float(info["cost_per_nfe"]),
            }
            self.episodes.append(episode)
            if "image" in info:  # remote workers may not send theirs
                self.images.append((info["image"], episode))
        return True

    def _on_rollout_end(self) -> None:
        self.logger.record("env/dropped_episodes", self.faults)
        if losses := getattr(self.training_env.unwrapped, "losses", None):  # of Ray workers
            for name, count in asdict(losses).items():
                self.logger.record(f"rollouts/{name}", count)
        if not self.episodes:
            return
        taken = Counter(action for episode in self.episodes for action in episode["actions"])
        total = sum(taken.values())
        record = self.logger.record
        record("env/nfe", float(np.mean([episode["nfe"] for episode in self.episodes])))
        record("env/quality", float(np.mean([episode["quality"] for episode in self.episodes])))
        record("env/network_calls", float(np.mean([episode["calls"] for episode in self.episodes])))
        record("env/stop_fraction", taken[int(Action.STOP)] / total)
        record("env/refine_fraction", taken[int(Action.REFINE)] / total)
        record("env/continue_fraction", taken[int(Action.CONTINUE)] / total)
        record("env/action_patterns", len({tuple(episode["actions"]) for episode in self.episodes}))
        record("env/pattern_entropy", pattern_entropy([tuple(episode["actions"]) for episode in self.episodes]))
        for name, value in self.terms.items():
            record(f"reward/{name}", value / max(1, self.decisions))
        self.terms.clear()
        self.decisions = 0
        if self.num_timesteps - self._pictured >= PICTURES_EVERY:
            self._pictured = self.num_timesteps
            self._write_histogram_and_images()

    def frontier(self, bins: int = 4) -> list[tuple[float, float]]:
        """(cost per NFE, mean NFE) of the last episodes in ``bins`` equal groups by cost per NFE; NFE never increases.

        Used to look up ``target_nfe``. Empty while fewer than ten episodes per bin have been seen.
        """
        ordered = sorted((episode["cost_per_nfe"], episode["nfe"]) for episode in self.episodes)
        if len(ordered) < 10 * bins:
            return []
        parts = [np.array(part) for part in np.array_split(np.array(ordered), bins)]
        costs_per_nfe = [float(part[:, 0].mean()) for part in parts]
        spent = np.minimum.accumulate([float(part[:, 1].mean()) for part in parts])
        return [(cost_per_nfe, float(nfe)) for cost_per_nfe, nfe in zip(costs_per_nfe, spent, strict=True)]

    def _write_histogram_and_images(self) -> None:
        exclude = ("stdout", "log", "json", "csv")
        shown = list(self.images)
        if shown:
            grid = image_grid([image for image, _ in shown], [episode["nfe"] for _, episode in shown])
            self.logger.record("images/grid", Image(grid, "HWC"), exclude=exclude)
        strips = timelines([episode["actions"] for episode in list(self.episodes)[-32:]])
        self.logger.record("images/action_timelines", Image(strips, "HWC"), exclude=exclude)
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):
                spent = np.array([episode["nfe"] for episode in self.episodes])
                output.writer.add_histogram("env/nfe_histogram", spent, self.num_timesteps)


def pattern_entropy(patterns: list[tuple[int, ...]]) -> float:
    """Entropy of whole action sequences over episodes, in bits: 0 when all episodes take the same actions.

    >>> pattern_entropy([(0, 1), (0, 1)]), pattern_entropy([(0, 1), (1,)])
    (0.0, 1.0)
    """
    shares = np.array(list(Counter(patterns).values())) / len(patterns)
    return float(abs(np.sum(shares * np.log2(shares))))


def image_grid(images: Sequence[np.ndarray], nfe: Sequence[float]) -> np.ndarray:
    """Finished images in a grid, each with its NFE below: (H, W, 3) uint8."""
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    grid = Picture.new("RGB", (columns * CELL, rows * (CELL + CAPTION)), (24, 24, 28))
    draw = ImageDraw.Draw(grid)
    for index, (image, spent) in enumerate(zip(images, nfe, strict=True)):
        left, top = (index % columns) * CELL, (index // columns) * (CELL + CAPTION)
        grid.paste(Picture.fromarray(image).resize((CELL - 2, CELL - 2)), (left + 1, top + 1))
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


class Checkpointer(BaseCallback):
    """Takes a snapshot at the start of each rollout and writes it every ``every`` decisions and on a signal.

    A signal (SIGINT, SIGTERM) writes the snapshot taken at the start of the current rollout and ends training: resuming
    collects that rollout again, from the same state and the same random numbers, so the end result is that of a run
    that was never interrupted.

    If a checkpoint cannot be written (the disk is full), training continues with a warning and tries again at the next
    rollout; the previous checkpoint is kept. At the end of training it is an error.

    Args:
        folder: folder of the checkpoints.
        every: decisions between two checkpoints.
        log: its episodes are stored in each checkpoint, so that a resumed run has the same means and frontier.

    Attributes:
        interrupted: number of the received signal, or ``None``.
        stopped: whether it ended training early.
        failures: number of checkpoints that could not be written.
    """

    def __init__(self, folder: Path, every: int, log: EpisodeLog | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.every = every
        self.log = log
        self.interrupted: int | None = None
        self.stopped = False
        self.failures = 0
        self._snapshot: Snapshot | None = None
        self._written = 0
        self._handlers: dict[int, Any] = {}

    def _on_training_start(self) -> None:
        self._written = self.num_timesteps
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = number

    def _on_rollout_start(self) -> None:
        self._snapshot = self._take()
        if self.num_timesteps - self._written >= self.every:
            try:
                self._snapshot.write(self.folder)
            except RunFolderError as error:
                self.failures += 1
                warnings.warn(f"{error.cause}; training continues and tries again at the next rollout", stacklevel=2)
            else:
                self._written = self.num_timesteps

    def _on_step(self) -> bool:
        if self.interrupted is not None:
            assert self._snapshot is not None
            path = self._snapshot.write(self.folder)
            self.stopped = True
            print(f"\nsignal {self.interrupted}: checkpoint {path}; run the same command again to continue")
            return False
        return True

    def _on_training_end(self) -> None:
        self._put_handlers_back()
        if not self.stopped:
            self._take().write(self.folder)

    def rescue(self) -> None:
        """After an error in training: writes the snapshot taken at the start of the current rollout."""
        self._put_handlers_back()
        if self._snapshot is None:
            return
        try:
            print(f"training failed; checkpoint {self._snapshot.write(self.folder)}", flush=True)
        except RunFolderError as error:  # the error that ended training is the one to show
            print(f"training failed; {error.cause}; earlier checkpoints are kept", flush=True)

    def _take(self) -> Snapshot:
        met = ((), ()) if self.log is None else (list(self.log.episodes), self.log.prompt_ids)
        return Snapshot(self.model, self.training_env, *met)  # type: ignore[arg-type]

    def _put_handlers_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

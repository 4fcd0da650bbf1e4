"""Records tables of attempts with the engine, in shards, so that an interrupted recording can be resumed."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.fingerprint import digest_of
from addiffusion_env.backbones.identity import described, identity_of
from addiffusion_env.backbones.solvers import SCHEDULER
from addiffusion_env.engine.coroutines import act, finished, score_preview
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import Begin, Fault, FaultCount, Lane, Request
from addiffusion_env.engine.process import Action, ProcessConfig
from addiffusion_env.envs.settings import EnvSettings, load_backbone, load_scorers
from addiffusion_env.errors import ConfigError, ResumeError
from addiffusion_env.observations import needs_features
from addiffusion_env.observations.features import LOG_SNR_RANGE
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers.image_scores import GeneratedImage, ImageScorers, ImageScores
from addiffusion_env.tabular.table import AttemptTable

Judge = Callable[[Sequence[torch.Tensor], Sequence[Prompt]], Sequence[bool | None]]
"""Images and their prompts -> verdicts."""


@dataclass(frozen=True)
class Place:
    """The record of one place of an attempt.

    Attributes:
        lane: the lane; its NFE counts from the beginning of the episode.
        scores: the scores of the preview or image.
        image: the finished image, if there is one.
    """

    lane: Lane
    scores: ImageScores
    image: GeneratedImage | None = None


@dataclass(frozen=True)
class Recorder:
    """Records tables of one process.

    Attributes:
        backbone: the model.
        scorers: score previews and finished images.
        process: the decision process; for more than one attempt it needs ``refine.return_to`` and ``check_finished``.
        attempts: T, attempts per image; 1 records the early exits of a single attempt.
        judge: judges finished images; ``None`` records no verdicts.
        halve: whether to halve the batch of model calls when the device's memory runs out.
        faults: how many images may be left out because their lane failed on its own; none by default.
        features: whether to record the denoiser's features, for observations that need them.
    """

    backbone: Backbone
    scorers: ImageScorers
    process: ProcessConfig
    attempts: int
    judge: Judge | None = None
    halve: bool = False
    faults: FaultCount = field(default_factory=FaultCount)
    features: bool = False

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"attempts must be at least 1, got {self.attempts}", "use 4")
        if self.attempts > 1:
            check_recordable(self.process)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything a table depends on except its images; shards of another identity are not reused."""
        process = asdict(self.process)
        for name in self.process.not_identity:
            process.pop(name)
        for name in ("utility", "limit", "margin", "first_step"):  # a recording does not depend on these
            process["refine"].pop(name)
        return identity_of(
            backbone=self.backbone,
            scorers=self.scorers,
            judge=self.judge,
            process=process,
            tries=self.attempts,
            features=self.features,
        )

    @property
    def fingerprint(self) -> str:
        """12 hex digits of :attr:`identity`, for file names."""
        return digest_of(self.identity)[:12]

    def record(self, images: Sequence[tuple[Prompt, int]], lanes: int = 16) -> AttemptTable:
        """Records (prompt, seed) pairs; those whose lane fails are left out, see ``faults``."""
        engine = Engine(self.backbone, self.scorers, solver=self.process.solver, halve=self.halve, faults=self.faults)
        found = engine.run((self.coroutine(*image) for image in images), lanes)
        kept = [row for row, attempts in enumerate(found) if not isinstance(attempts, Fault)]
        return self._table([images[row] for row in kept], [found[row] for row in kept])

    def record_shards(
        self, images: Sequence[tuple[Prompt, int]], folder: Path, lanes: int = 16, size: int = 32
    ) -> AttemptTable:
        """As :meth:`record`, in shards under ``folder``; existing shards are read instead. Prints its progress.

        Args:
            images: (prompt, seed) pairs.
            folder: created if it does not exist.
            lanes: number of images generated concurrently.
            size: images per file, the most that is lost on an interruption.

        Raises:
            RunFolderError: if a shard cannot be written.
        """
        parts, done = [], 0
        for chunk, path in self.shards(images, folder, size):
            parts.append(self.shard(chunk, path, lanes))
            done += len(chunk)
            print(f"recorded {done} of {len(images)} images, {self.attempts} attempts each", flush=True)
        return AttemptTable.join(parts)

    def shards(
        self, images: Sequence[tuple[Prompt, int]], folder: Path, size: int
    ) -> list[tuple[Sequence[tuple[Prompt, int]], Path]]:
        """The shards of :meth:`record_shards`: the images of each, and its file, named by its content."""
        fingerprint, found = self.fingerprint, []
        for first in range(0, len(images), size):
            chunk = images[first : first + size]
            ids = json.dumps([[described(prompt), seed] for prompt, seed in chunk])
            name = f"tries-{fingerprint}-{hashlib.sha256(ids.encode()).hexdigest()[:12]}.parquet"
            found.append((chunk, folder / name))
        return found

    def shard(self, chunk: Sequence[tuple[Prompt, int]], path: Path, lanes: int) -> AttemptTable:
        """One of :meth:`shards`, read or recorded; see :meth:`record_shards`."""
        if path.is_file():
            try:
                return AttemptTable.load(path)
            except ResumeError as error:
                warnings.warn(f"{error}", stacklevel=2)
        table = self.record(chunk, lanes)
        table.save(path)
        return table

    def coroutine(self, prompt: Prompt, seed: int) -> Generator[Request, Any, list[list[Place | None]]]:
        """All attempts of one image: T lists of Q places."""
        lane = yield Begin(self.process, prompt, seed)
        attempts = []
        for number in range(self.attempts):
            early = None
            if lane.step == 0:  # the policy decides before the first evaluation
                early = yield from self._exited(lane)
                lane = yield from self._scored(act(self.backbone, self.process, lane, Action.CONTINUE))
            base, steps = lane, []
            while lane.remaining:
                assert lane.scores is not None
                steps.append(Place(lane, lane.scores))
                lane = yield from self._scored(act(self.backbone, self.process, lane, Action.CONTINUE))
            image = yield from finished(lane)
            end = Place(lane, image.scores, image)
            early_exits = []
            for step in steps:
                early_exits.append((yield from self._exited(step.lane, end)))
            attempts.append([*steps, end, *early_exits, early])
            if number + 1 < self.attempts:
                # The next attempt is the same from every state: fresh noise, the same steps of the schedule.
                lane = yield from self._scored(act(self.backbone, self.process, base, Action.REFINE))
        return attempts

    def _scored(self, action: Generator[Request, Any, Lane]) -> Generator[Request, Any, Lane]:
        """The lane after an action, with the scores of its preview if it has one and is not finished."""
        lane = yield from action
        seen = lane.x0 is not None and lane.remaining > 0
        return (yield from score_preview(lane)) if seen and lane.scores is None else lane

    def _exited(self, lane: Lane, end: Place | None = None) -> Generator[Request, Any, Place]:
        """The place that *stop* leads to: ``end`` if the early exit equals the rest of the schedule."""
        levels = self.backbone.early_exit_levels(lane.rest, self.process.early_exit_steps)
        if end is not None and np.array_equal(levels, lane.rest):
            return end
        exited = yield from act(self.backbone, self.process, lane, Action.STOP)
        image = yield from finished(exited)
        return Place(exited, image.scores, image)

    def _table(self, images: Sequence[tuple[Prompt, int]], found: Sequence[list[list[Place | None]]]) -> AttemptTable:
        steps = self.process.decision_steps
        shape = (len(images), self.attempts, 2 * len(steps) + 2)
        numbers = {
            name: np.full(shape, np.nan, np.float32)
            for name in ("clip_score", "preference", "change", "nfe", "calls", "correct")
        }
        clip = np.zeros((*shape, self.scorers.clip_dim), np.float32)
        dino = np.zeros((*shape, self.scorers.dino_dim), np.float32)
        width = (self.backbone.capabilities.feature_dim or 0) if self.features else 0
        features = np.zeros((*shape, width), np.float32)
        sigma = np.full(shape[2], np.nan)
        images_at: list[tuple[tuple[int, int, int], Place]] = []
        for row, attempts in enumerate(found):
            for number, places in enumerate(attempts):
                before = self._spent_before(places)
                for q, place in enumerate(places):
                    if place is None:
                        continue
                    at = (row, number, q)
                    clip[at], dino[at] = place.scores.clip_image[0], place.scores.dino[0]
                    if width and place.lane.features is not None:
                        features[at] = place.lane.features[0].float().cpu().numpy()
                    numbers["clip_score"][at] = place.scores.clip_score[0]
                    numbers["preference"][at] = place.scores.preference[0]
                    numbers["change"][at] = place.lane.change
                    numbers["nfe"][at] = place.lane.nfe - before[0]
                    numbers["calls"][at] = place.lane.calls - before[1]
                    sigma[q] = place.lane.sigma
                    if place.image is not None:
                        images_at.append((at, place))
        self._verdicts(images_at, numbers["correct"])
        prompts = [prompt for prompt, _ in images]
        first = float(self.backbone.sigmas(self.process.steps, self.process.spacing)[0])
        levels = torch.from_numpy(np.append(sigma, first))
        log_snr = self.backbone.path.half_log_snr(levels).clamp(*LOG_SNR_RANGE).numpy()
        return AttemptTable(
            prompts=tuple(prompt.text for prompt in prompts),
            prompt_ids=tuple(prompt.prompt_id for prompt in prompts),
            tasks=tuple(prompt.task for prompt in prompts),
            constraints=np.array([prompt.constraints for prompt in prompts]),
            seeds=np.array([seed for _, seed in images]),
            steps=tuple(steps),
            log_snr=log_snr[:-1],
            start_log_snr=np.array(log_snr[-1]),
            clip_image=clip,
            clip_text=self.scorers.clip.embed_texts(prompts).numpy(),
            dino=dino,
            features=features,
            identity=self.identity,
            **numbers,
        )

    def _spent_before(self, places: Sequence[Place | None]) -> tuple[float, int]:
        """(NFE, calls) of the lane at the start of this attempt, which begins with the first steps of the schedule."""
        first = places[0]
        assert first is not None
        levels = self.backbone.sigmas(self.process.steps, self.process.spacing)[: first.lane.step]
        calls = self.process.calls_of(levels)
        return first.lane.nfe - self.process.cost(calls)[0], first.lane.calls - calls

    def _verdicts(self, finished: Sequence[tuple[tuple[int, int, int], Place]], correct: np.ndarray) -> None:
        if self.judge is None or not finished:
            return
        images = [place.image.tensor for _, place in finished if place.image is not None]
        verdicts = self.judge(images, [place.lane.prompt for _, place in finished])
        for (at, _), verdict in zip(finished, verdicts, strict=True):
            correct[at] = np.nan if verdict is None else float(verdict)


def check_recordable(process: ProcessConfig) -> None:
    """Checks that the episodes of a process fit a table of attempts.

    Raises:
        ConfigError: if they do not; names the settings that are needed.
    """
    refine, first = process.refine, next(iter(process.decision_steps), 1)
    if not process.check_finished or refine.accept != "best" or refine.return_to not in (0, first):
        raise ConfigError(
            f"a table of attempts needs check_finished, refine.accept=best and refine.return_to={first} (the first "
            f"decision step) or 0, got check_finished={process.check_finished}, accept={refine.accept}, "
            f"return_to={refine.return_to}",
            "use refine preset=resample_keep_best with these settings, or train with tabular=null",
        )
    if process.solver not in ("ddim", SCHEDULER):  # after fresh noise the pipeline's scheduler begins anew
        raise ConfigError(
            f"a table of attempts needs a single-step solver or the pipeline's own, got {process.solver}",
            "use solver=ddim, or train with tabular=null",
        )


def recorder_of(settings: EnvSettings, attempts: int) -> Recorder:
    """The recorder of an environment's process, with the denoiser's features where an observation key needs them.

    Raises:
        ConfigError: for a process that is not a table of attempts.
    """
    backbone = load_backbone(settings)
    return Recorder(
        backbone,
        load_scorers(backbone, settings.scorers),
        settings.process(backbone.capabilities, backbone.name).counted(backbone),
        attempts,
        halve=settings.halve_lanes,
        faults=FaultCount(settings.max_faults),
        features=needs_features(settings.keys()),
    )

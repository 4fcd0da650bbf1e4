"""The engine: runs many lanes in lockstep with ONE denoiser call for all of them, each lane at its own noise level.

A lane is one image being generated; its coroutine (:mod:`addiffusion_env.engine.coroutines`) is written for it alone.
The engine answers the requests of all running coroutines in batches: previews with one call of the preview decoder and
of each scorer, decisions with one call of the policy, evaluations with one call of the denoiser.
"""

from __future__ import annotations

import operator
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.batches import Conditioning, Latents, cat_rows, finite_rows
from addiffusion_env.backbones.solvers import SCHEDULER, SOLVERS, check_solver
from addiffusion_env.engine import Counters
from addiffusion_env.engine.lane import (
    LANE_ERRORS,
    Begin,
    Coroutine,
    Decide,
    Evaluate,
    FaultCount,
    Finish,
    Outcome,
    Remembered,
    Request,
    ScorePreview,
    open_lanes,
    relative_change,
)
from addiffusion_env.errors import ConfigError, DeviceMemoryError, NumericsError
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers.image_scores import GeneratedImage, ImageScorers, ImageScores, utilities_of

Decider = Callable[[Sequence[Decide]], Sequence[int]]


@dataclass
class Task:
    """A running coroutine; ``result`` is its return value, or the :class:`Fault` it was dropped for."""

    index: int
    coroutine: Coroutine
    waiting: Request | None = None
    done: bool = False
    result: Any = None

    def resume(self, answer: Any) -> None:
        """Sends the answer to the coroutine and runs it to its next request or its end."""
        try:
            self.waiting = self.coroutine.send(answer)
        except StopIteration as stop:
            self.waiting, self.done, self.result = None, True, stop.value


class Queue:
    """Work for free lanes: first tasks that gave up a lane before, then new coroutines, started one at a time.

    Args:
        coroutines: consumed lazily.
        resume: sends an answer to a task; ``None`` starts it.
    """

    def __init__(self, coroutines: Iterable[Coroutine], resume: Callable[[Task, Any], None]) -> None:
        self._source = enumerate(coroutines)
        self._resume = resume
        self._back: deque[Task] = deque()
        self._more = True

    @property
    def empty(self) -> bool:
        """Whether no work is left; exact once :meth:`take` has returned fewer tasks than requested."""
        return not self._more and not self._back

    def put_back(self, tasks: Iterable[Task]) -> None:
        """Queues tasks that need a lane again; they get one before new coroutines do."""
        self._back.extend(tasks)

    def take(self, count: int) -> list[Task]:
        """Up to ``count`` tasks, at their first or next request."""
        taken: list[Task] = []
        while len(taken) < count and not self.empty:
            if self._back:
                taken.append(self._back.popleft())
            elif (entry := next(self._source, None)) is None:
                self._more = False
            else:
                task = Task(*entry)
                self._resume(task, None)
                taken.append(task)
        return taken


@dataclass
class Engine:
    """Runs coroutines in lockstep.

    A lane that fails on its own (NaN, a scorer that raises) is dropped while the others continue
    (:mod:`addiffusion_env.engine.lane`).

    Attributes:
        backbone: the model.
        scorers: score previews and finished images.
        solver: name in :data:`backbones.solvers.SOLVERS`.
        decider: answers :class:`Decide` requests; only needed by coroutines that make them.
        max_batch: maximum number of lanes in one call of a model; ``None`` for no limit.
        halve: whether ``max_batch`` is halved, with a warning, when a call does not fit into the device's memory.
        faults: how many lanes may be dropped; none by default.
        counters: counts of the work done.
    """

    backbone: Backbone
    scorers: ImageScorers
    solver: str = "ddim"
    decider: Decider | None = None
    max_batch: int | None = None
    halve: bool = False
    faults: FaultCount = field(default_factory=FaultCount)
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        check_solver(self.solver)
        self._step = None if self.solver == SCHEDULER else SOLVERS.load(self.solver)
        self._joined: tuple[Sequence[Conditioning], Conditioning] | None = None

    def run(self, coroutines: Iterable[Coroutine], max_lanes: int | None = None) -> list[Any]:
        """Runs coroutines to their ends; returns their results in order, a :class:`Fault` for each one dropped.

        Args:
            coroutines: each is started when there is a lane for it.
            max_lanes: maximum number running at once; ``None`` runs all of them together.

        Raises:
            NumericsError, ScorerError: if more lanes fail than ``faults`` allows.
            DeviceMemoryError: if memory runs out; with ``halve``, if a single lane does not fit.
        """
        if max_lanes is None:
            coroutines = list(coroutines)
            max_lanes = max(1, len(coroutines))
        results = dict(self.stream(coroutines, max_lanes))
        return [results[index] for index in range(len(results))]

    def stream(
        self, coroutines: Iterable[Coroutine], max_lanes: int, decode_batch: int = 1
    ) -> Iterator[tuple[int, Any]]:
        """Keeps up to ``max_lanes`` coroutines running; yields (position in ``coroutines``, result) as they end.

        A lane is refilled as soon as its coroutine ends or waits for the full decoder. A coroutine that continues after
        its image was decoded (a new attempt) gets the next free lane.

        Args:
            coroutines: consumed lazily: each is started when there is a lane for it.
            max_lanes: maximum number of coroutines in one denoiser call.
            decode_batch: number of images that are decoded together. Once lanes are empty and no coroutine is left to
                start, the waiting images are decoded at once, however few.

        Raises:
            ConfigError: for ``max_lanes`` or ``decode_batch`` below 1.
        """
        for name, value in (("max_lanes", max_lanes), ("decode_batch", decode_batch)):
            if not isinstance(value, int | np.integer) or value < 1:
                wanted = "at least 1" if isinstance(value, int | np.integer) else "a whole number"
                raise ConfigError(f"{name} must be {wanted}, got {value!r}", "use 8")
        queue = Queue(coroutines, self._resume)
        lanes: list[Task] = []
        exited: list[Task] = []
        while True:
            lanes += queue.take(max_lanes - len(lanes))
            self._begin_and_decide(lanes)
            ended = [task for task in lanes if task.done]
            exited += [task for task in lanes if isinstance(task.waiting, Finish)]
            lanes = [task for task in lanes if isinstance(task.waiting, Evaluate)]
            idle = len(lanes) < max_lanes and queue.empty
            if exited and (len(exited) >= decode_batch or idle):
                self._finish(exited)
                ended += [task for task in exited if task.done]
                queue.put_back(task for task in exited if not task.done)
                exited = []
            for task in ended:
                yield task.index, task.result
            if len(lanes) < max_lanes and not queue.empty:
                continue  # fill the free lanes first
            if not lanes:
                return
            self._evaluate(lanes, room=max_lanes, queued=not queue.empty)

    def _begin_and_decide(self, tasks: Sequence[Task]) -> None:
        """Answers requests until every task has ended or waits for the denoiser or the decoder."""
        answers = {Begin: self._begin, ScorePreview: self._score_previews, Decide: self._decide}
        while True:
            groups: dict[type, list[Task]] = {}
            for task in tasks:
                groups.setdefault(type(task.waiting), []).append(task)
            # Images begin first, so that their first decision is made together with those of the other lanes.
            kinds = [Begin] if Begin in groups else [kind for kind in (ScorePreview, Decide) if kind in groups]
            if not kinds:
                return
            for kind in kinds:
                answers[kind](groups[kind])

    def _begin(self, tasks: Sequence[Task]) -> None:
        self._answer("encoding the prompts of", tasks, lambda requests: open_lanes(self.backbone, requests))

    def _resume(self, task: Task, answer: Any) -> None:
        """Sends an answer to a task; one of :data:`LANE_ERRORS` ends that task alone."""
        try:
            if isinstance(answer, LANE_ERRORS):
                raise answer
            task.resume(answer)
        except LANE_ERRORS as error:
            task.coroutine.close()
            task.waiting, task.done, task.result = None, True, self.faults.drop(error)

    def _answer(self, doing: str, tasks: Sequence[Task], work: Callable[[list[Any]], Sequence[Any]]) -> None:
        """Answers tasks in batches; with ``halve`` a batch that does not fit into memory is halved."""
        left = list(tasks)
        while left:
            chunk = left[: self.max_batch or len(left)]
            try:
                answers = work([task.waiting for task in chunk])
            except torch.cuda.OutOfMemoryError as error:
                if not self.halve or len(chunk) == 1:
                    raise DeviceMemoryError(
                        f"{self.backbone.device} ran out of memory {doing}: {len(chunk)} lanes of backbone "
                        f"{self.backbone.name!r}",
                        "use fewer lanes (lanes=auto finds how many; lanes, max_lanes, num_envs), "
                        "backbone_options.vae_tiling=true, or backbone_options.offload=model",
                    ) from error
            else:
                left = left[len(chunk) :]
                for task, answer in zip(chunk, answers, strict=True):
                    self._resume(task, answer)
                continue
            # After the except block: only here are the tensors of the failed call freed.
            self.max_batch = len(chunk) // 2
            torch.cuda.empty_cache()
            warnings.warn(
                f"{self.backbone.device} ran out of memory {doing} {len(chunk)} lanes at once: continuing with "
                f"{self.max_batch} per call",
                stacklevel=2,
            )

    def _score_previews(self, tasks: Sequence[Task]) -> None:
        self._answer("scoring previews of", tasks, self._previews_scored)

    def _previews_scored(self, requests: list[ScorePreview]) -> list[ImageScores | Exception]:
        images = self.backbone.preview(torch.cat([request.x0 for request in requests]))
        scores = self._scores_of(images, [request.prompt for request in requests])
        self.counters.looks += len(requests)
        self.counters.score_batches += 1
        return scores

    def _finish(self, tasks: Sequence[Task]) -> None:
        self._answer("decoding finished images of", tasks, self._finished)

    def _finished(self, requests: list[Finish]) -> list[GeneratedImage | Exception]:
        known = [request.conditioning for request in requests if request.conditioning is not None]
        x = cat_rows([request.x for request in requests])
        decoded = self.backbone.decode(x, known if len(known) == len(requests) else None)
        finite = finite_rows(decoded)
        good = finite.tolist()
        prompts = [request.prompt for request, fine in zip(requests, good, strict=True) if fine]
        sound = decoded if all(good) else decoded[finite]
        found = iter(self._scores_of(sound, prompts) if prompts else ())
        scores = [
            next(found) if fine else self._not_decoded(request, len(good) - sum(good), len(good))
            for request, fine in zip(requests, good, strict=True)
        ]
        self.counters.decodes += len(requests)
        self.counters.decode_batches += 1
        utilities = utilities_of([request.utility for request in requests], scores)
        return [
            GeneratedImage(image, own, utility) if isinstance(own, ImageScores) else own
            for image, own, utility in zip(decoded, scores, utilities, strict=True)
        ]

    def _not_decoded(self, request: Finish, bad: int, images: int) -> NumericsError:
        return NumericsError(
            f"the decoder ({self.backbone.decoder_name}) returned NaN or infinity for {bad} of {images} images, "
            f"here for prompt {request.prompt.text[:60]!r}",
            "decode in float32 (pipe.vae.to(torch.float32), or vae.config.force_upcast), or use another autoencoder",
        )

    def _scores_of(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> list[ImageScores | Exception]:
        """The scores of each image, or the error it raised: a batch that fails is scored image by image."""
        try:
            scores = self.scorers.scores(images, prompts)
            return [scores.row(row) for row in range(len(prompts))]
        except LANE_ERRORS as error:
            if self.faults.limit == 0:
                raise  # no lane may be dropped, and the message about the whole batch is more informative
            if len(prompts) == 1:
                return [error]
        found: list[ImageScores | Exception] = []
        for row, prompt in enumerate(prompts):
            found += self._scores_of(images[row : row + 1], [prompt])
        return found

    def _decide(self, tasks: Sequence[Task]) -> None:
        if not tasks:
            return
        if self.decider is None:
            raise ConfigError(
                "a coroutine requested a decision, and this engine has no policy", "pass decider= to Engine"
            )
        requests: list[Any] = [task.waiting for task in tasks]
        actions = self.decider(requests)
        for task, action in zip(tasks, actions, strict=True):
            task.resume(action if isinstance(action, Remembered) else int(action))

    def _evaluate(self, tasks: Sequence[Task], room: int, queued: bool) -> None:
        self.counters.busy += len(tasks)
        self.counters.capacity += room
        if queued:
            self.counters.queued_busy += len(tasks)
            self.counters.queued_capacity += room
        self._answer("evaluating the denoiser for", tasks, self.evaluate)

    @torch.no_grad()
    def evaluate(self, requests: Sequence[Evaluate]) -> list[Outcome | NumericsError]:
        """Answers evaluations with one denoiser call and one solver step.

        Returns:
            One outcome per request, or the error of a lane for which the denoiser returned NaN or infinity.
        """
        latents = Latents.cat([request.latents for request in requests])
        conditioning = self._conditioning([request.conditioning for request in requests])
        scale = torch.tensor([request.guidance_scale for request in requests], dtype=torch.float64)
        capture = torch.tensor([request.capture for request in requests])
        prediction = self.backbone.predict(latents.x, latents.sigma, conditioning, scale, capture)
        self.counters.denoiser_batches += 1
        self.counters.denoiser_rows += int(prediction.calls.sum())
        self.counters.evaluations += len(requests)
        # A request without sigma_next is stepped from sigma to sigma, which leaves its latents unchanged.
        targets = [
            sigma if request.sigma_next is None else request.sigma_next
            for request, sigma in zip(requests, latents.sigma.tolist(), strict=True)
        ]
        last = torch.tensor([request.last for request in requests])
        levels = torch.tensor(targets, dtype=torch.float64)
        if self._step is None:
            stepped = self.backbone.scheduler_step(latents, prediction, conditioning, levels)
        else:
            stepped = self._step(self.backbone.path, latents, prediction.x0, levels, last)
        x0, size = prediction.x0, len(requests)
        compared = [row for row, request in enumerate(requests) if request.before is not None]
        checks = torch.zeros(2, size, dtype=x0.dtype, device=x0.device)
        checks[0] = finite_rows(x0)
        if compared:
            before = torch.cat([request.before for request in requests if request.before is not None])
            all_rows = len(compared) == size
            checks[1, slice(None) if all_rows else compared] = relative_change(x0 if all_rows else x0[compared], before)
        finite, change = checks.tolist()  # the only synchronisation with the device
        calls = prediction.calls.tolist()
        attention = [None] * size if prediction.attention is None else prediction.attention.split(1)
        features = [None] * size if prediction.features is None else prediction.features.split(1)
        outcomes: list[Outcome | NumericsError] = []
        for row, (request, own) in enumerate(zip(requests, x0.split(1), strict=True)):
            if not finite[row]:
                outcomes.append(_not_finite(request, size - int(sum(finite)), size))
                continue
            after = request.latents if request.sigma_next is None else stepped.row(row)
            outcomes.append(Outcome(after, own, calls[row], attention[row], features[row], change[row]))
        return outcomes

    def _conditioning(self, parts: Sequence[Conditioning]) -> Conditioning:
        """The lanes' prompts, joined; those that were joined for the last call are taken from there."""
        known: dict[int, Conditioning] = {}
        if self._joined is not None:
            old, joined = self._joined
            if len(old) == len(parts) and all(map(operator.is_, old, parts)):
                return joined
            known = {id(part): joined.row(row) for row, part in enumerate(old)}
        made = Conditioning.cat([known.get(id(part), part) for part in parts])
        self._joined = (parts, made)
        return made


def _not_finite(request: Evaluate, bad: int, lanes: int) -> NumericsError:
    return NumericsError(
        f"the denoiser returned NaN or infinity for {bad} of {lanes} lanes, here at "
        f"sigma {float(request.latents.sigma[0]):.4g} for prompt {request.who[:60]!r}",
        "use dtype=float32 or bfloat16, a lower guidance_scale, or check the weights",
    )

"""The engine of lanes: many programs in step, ONE denoiser call for all of them, each lane at its own noise level.

A program (:mod:`addiffusion_env.engine.coroutines`) is written as if its lane were alone. The engine collects what all
running programs ask for and answers in batches: previews with one pass of the tiny decoder and of each scorer,
decisions with one call of the policy, evaluations with one call of the denoiser. Lanes that end make room at once.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from addiffusion_env.backbones.base import Backbone, Conditioning, Latents
from addiffusion_env.backbones.solvers import SCHEDULER, SOLVERS, check_solver
from addiffusion_env.engine.lane import (
    LANE_ERRORS,
    Coroutine,
    Decide,
    Evaluate,
    FaultCount,
    Finish,
    GeneratedImage,
    Outcome,
    Request,
    ScorePreview,
)
from addiffusion_env.errors import ConfigError, DeviceMemoryError, NumericsError
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers.image_scores import ImageScorers, ImageScores

Decider = Callable[[Sequence[Decide]], Sequence[int]]


@dataclass
class Counters:
    """What the engine has done since it was made.

    Attributes:
        denoiser_batches: calls of the denoiser.
        denoiser_rows: rows in them, a guided evaluation counting two: network calls.
        evaluations: evaluations asked for by lanes.
        looks: previews decoded and scored.
        score_batches: in how many batches.
        decodes: images decoded in full.
        decode_batches: in how many batches.
        busy: lane-ticks spent on an evaluation.
        capacity: lane-ticks there was room for.
        queued_busy: of ``busy``, those while programs were waiting for a lane.
        queued_capacity: of ``capacity``, likewise.
    """

    denoiser_batches: int = 0
    denoiser_rows: int = 0
    evaluations: int = 0
    looks: int = 0
    score_batches: int = 0
    decodes: int = 0
    decode_batches: int = 0
    busy: int = 0
    capacity: int = 0
    queued_busy: int = 0
    queued_capacity: int = 0

    def snapshot(self) -> dict[str, int]:
        """The counts as a plain dict."""
        return asdict(self)

    @property
    def utilisation(self) -> float:
        """Busy lane-ticks over lane-ticks, in [0, 1], the last lanes' way to the end included."""
        return self.busy / self.capacity if self.capacity else 0.0

    @property
    def queued_utilisation(self) -> float:
        """The same while programs were waiting for a lane, in [0, 1]; 0 if none ever waited."""
        return self.queued_busy / self.queued_capacity if self.queued_capacity else 0.0


@dataclass
class Task:
    """A program in flight; ``result`` is what it returned, or the :class:`Fault` that it was dropped for."""

    index: int
    coroutine: Coroutine
    waiting: Request | None = None
    done: bool = False
    result: Any = None

    def resume(self, answer: Any) -> None:
        """Sends the answer in and runs to the next request or the end."""
        try:
            self.waiting = self.coroutine.send(answer)
        except StopIteration as stop:
            self.waiting, self.done, self.result = None, True, stop.value


class Queue:
    """Work for free lanes: first what was in a lane before, then new programs, begun one at a time.

    Args:
        coroutines: consumed lazily.
        resume: sends an answer into a task, here the ``None`` that begins it.
    """

    def __init__(self, coroutines: Iterable[Coroutine], resume: Callable[[Task, Any], None]) -> None:
        self._source = enumerate(coroutines)
        self._resume = resume
        self._back: deque[Task] = deque()
        self._more = True

    @property
    def empty(self) -> bool:
        """Whether nothing is known to be left; exact once :meth:`take` gave less than was asked for."""
        return not self._more and not self._back

    def put_back(self, tasks: Iterable[Task]) -> None:
        """Tasks that want a lane again; they are the next to get one."""
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
    """Runs programs in step.

    A lane that fails by itself (NaN, a scorer that raises) is dropped, its neighbours go on: see
    :mod:`addiffusion_env.engine.lane`. With ``halve`` a call that the device's memory does not hold is made again in
    halves, and so are the calls after it.

    Attributes:
        backbone: the model.
        scorers: what looks at previews and finished images.
        solver: name in :data:`backbones.solvers.SOLVERS`.
        decider: answers :class:`Decide` requests; only needed by programs that ask.
        max_batch: most lanes in one call of the denoiser, the decoders and the scorers; ``None`` for no limit.
        halve: whether ``max_batch`` is halved, with a warning, when memory runs out.
        faults: how many lanes may be dropped; none by default.
        counters: what was done so far.
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
        check_solver(self.solver, self.backbone.path)
        self._step = None if self.solver == SCHEDULER else SOLVERS.load(self.solver)

    def run(self, coroutines: Iterable[Coroutine], max_lanes: int | None = None) -> list[Any]:
        """Runs programs to their ends; returns their results in order, a :class:`Fault` for each one dropped.

        Args:
            coroutines: begun when there is a lane for them.
            max_lanes: most in flight at once; ``None`` runs all of them in step.

        Raises:
            NumericsError, ScorerError: when more lanes fail than ``faults`` allows.
            DeviceMemoryError: when memory runs out, with ``halve`` for a single lane.
        """
        if max_lanes is None:
            coroutines = list(coroutines)
            max_lanes = max(1, len(coroutines))
        results = dict(self.stream(coroutines, max_lanes))
        return [results[index] for index in range(len(results))]

    def stream(
        self, coroutines: Iterable[Coroutine], max_lanes: int, decode_batch: int = 1
    ) -> Iterator[tuple[int, Any]]:
        """Keeps up to ``max_lanes`` programs in flight; yields (position in ``coroutines``, result) as they end.

        A lane that ends is filled with the next program before the next denoiser call. A program that waits for the
        full decoder leaves its lane, too; one that goes on afterwards (a finished image that is tried again) gets
        the next free lane.

        Args:
            coroutines: consumed lazily: one is begun when there is a lane for it.
            max_lanes: most programs in one denoiser call.
            decode_batch: images that are decoded together. They wait for each other only while lanes are busy: once
                lanes stand empty for want of programs, all are decoded at once.

        Raises:
            ConfigError: for ``max_lanes`` or ``decode_batch`` below 1.
        """
        for name, value in (("max_lanes", max_lanes), ("decode_batch", decode_batch)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}", "use 8")
        queue = Queue(coroutines, self._resume)
        lanes: list[Task] = []
        exited: list[Task] = []
        while True:
            lanes += queue.take(max_lanes - len(lanes))
            self._look_and_decide(lanes)
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

    def _look_and_decide(self, tasks: Sequence[Task]) -> None:
        """Answers looks and decisions until every task has ended or waits for the denoiser or the full decoder."""
        while True:
            groups = {kind: [t for t in tasks if isinstance(t.waiting, kind)] for kind in (ScorePreview, Decide)}
            if not any(groups.values()):
                return
            self._score_previews(groups[ScorePreview])
            self._decide(groups[Decide])

    def _resume(self, task: Task, answer: Any) -> None:
        """Sends an answer in; the error of a lane of its own ends it."""
        try:
            if isinstance(answer, LANE_ERRORS):
                raise answer
            task.resume(answer)
        except LANE_ERRORS as error:
            task.coroutine.close()
            task.waiting, task.done, task.result = None, True, self.faults.drop(error)

    def _answer(self, doing: str, tasks: Sequence[Task], work: Callable[[list[Any]], Sequence[Any]]) -> None:
        """Answers tasks in batches; a batch that memory does not hold is halved, where that is wanted."""
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
            # Behind the except block: only here is what the failed call held free again.
            self.max_batch = len(chunk) // 2
            torch.cuda.empty_cache()
            warnings.warn(
                f"{self.backbone.device} ran out of memory {doing} {len(chunk)} lanes at once: going on with "
                f"{self.max_batch} a call",
                stacklevel=2,
            )

    def _score_previews(self, tasks: Sequence[Task]) -> None:
        self._answer("looking at previews of", tasks, self._previews_scored)

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
        x = torch.cat([request.x for request in requests])
        decoded = self.backbone.decode(x, known if len(known) == len(requests) else None)
        finite = torch.isfinite(decoded).flatten(1).all(1)
        good = finite.tolist()
        prompts = [request.prompt for request, fine in zip(requests, good, strict=True) if fine]
        found = iter(self._scores_of(decoded[finite], prompts) if prompts else ())
        self.counters.decodes += len(requests)
        self.counters.decode_batches += 1
        images: list[GeneratedImage | Exception] = []
        for request, image, fine in zip(requests, decoded, good, strict=True):
            scores = next(found) if fine else self._not_decoded(request, len(good) - sum(good), len(good))
            images.append(GeneratedImage(image, scores) if isinstance(scores, ImageScores) else scores)
        return images

    def _not_decoded(self, request: Finish, bad: int, images: int) -> NumericsError:
        return NumericsError(
            f"the decoder ({self.backbone.decoder_name}) returned NaN or infinity for {bad} of {images} images, "
            f"here for prompt {request.prompt.text[:60]!r}",
            "decode in float32 (pipe.vae.to(torch.float32), or vae.config.force_upcast), or use another autoencoder",
        )

    def _scores_of(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> list[ImageScores | Exception]:
        """A look at each image, or the error that it met: a batch that fails is looked at one by one."""
        try:
            scores = self.scorers.scores(images, prompts)
            return [scores.row(row) for row in range(len(prompts))]
        except LANE_ERRORS as error:
            if self.faults.limit == 0:
                raise  # all the same which lane it was, and the batch's own message says more
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
                "a program asked for a decision, and this engine has no policy", "pass decider= to Engine"
            )
        requests: list[Any] = [task.waiting for task in tasks]
        actions = self.decider(requests)
        for task, action in zip(tasks, actions, strict=True):
            task.resume(int(action))

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
            An outcome for each, or the error of a lane for which the denoiser returned NaN or infinity.
        """
        latents = Latents.cat([request.latents for request in requests])
        conditioning = Conditioning.cat([request.conditioning for request in requests])
        scale = torch.tensor([request.guidance_scale for request in requests], dtype=torch.float64)
        capture = torch.tensor([request.capture for request in requests])
        prediction = self.backbone.predict(latents.x, latents.sigma, conditioning, scale, capture)
        self.counters.denoiser_batches += 1
        self.counters.denoiser_rows += int(prediction.calls.sum())
        self.counters.evaluations += len(requests)
        # A row that stays is stepped nowhere: sigma to itself leaves the latents as they are.
        onward = [
            sigma if request.sigma_next is None else request.sigma_next
            for request, sigma in zip(requests, latents.sigma.tolist(), strict=True)
        ]
        last = torch.tensor([request.last for request in requests])
        levels = torch.tensor(onward, dtype=torch.float64)
        if self._step is None:
            stepped = self.backbone.scheduler_step(latents, prediction, conditioning, levels)
        else:
            stepped = self._step(self.backbone.path, latents, prediction.x0, levels, last)
        outcomes: list[Outcome | NumericsError] = []
        finite = torch.isfinite(prediction.x0).flatten(1).all(1).tolist()
        for row, request in enumerate(requests):
            if not finite[row]:
                outcomes.append(_not_finite(request, len(requests) - sum(finite), len(requests)))
                continue
            at = slice(row, row + 1)
            outcomes.append(
                Outcome(
                    latents=request.latents if request.sigma_next is None else stepped.row(row),
                    x0=prediction.x0[at],
                    calls=int(prediction.calls[row]),
                    attention=None if prediction.attention is None else prediction.attention[at],
                    features=None if prediction.features is None else prediction.features[at],
                )
            )
        return outcomes


def _not_finite(request: Evaluate, bad: int, lanes: int) -> NumericsError:
    return NumericsError(
        f"the denoiser returned NaN or infinity for {bad} of {lanes} lanes, here at "
        f"sigma {float(request.latents.sigma[0]):.4g} for prompt {request.who[:60]!r}",
        "use dtype=float32 or bfloat16, a lower guidance_scale, or check the weights",
    )

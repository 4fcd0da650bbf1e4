"""The engine of lanes: many programs in step, ONE denoiser call for all of them, each lane at its own noise level.

A program (:mod:`addiffusion_env.engine.programs`) is written as if its lane were alone. Each tick the engine collects
what the running programs ask for and answers in batches: previews with one pass of the tiny decoder and of each
scorer, decisions with one call of the policy, evaluations with one call of the denoiser. Lanes that end make room at
once (:meth:`Engine.stream`). No lane's picture depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from addiffusion_env.backbones.base import Backbone, Conditioning, Latents
from addiffusion_env.backbones.solvers import SOLVERS, check_solver
from addiffusion_env.engine.requests import Decide, Evaluate, Finish, Outcome, Peek, Picture, Program, Request
from addiffusion_env.errors import ConfigError, DeviceMemoryError, NumericsError
from addiffusion_env.scorers.look import LookScorers

Decider = Callable[[Sequence[Decide]], Sequence[int]]


@dataclass
class Counters:
    """What the engine has done since it was made.

    Attributes:
        denoiser_batches: calls of the denoiser.
        denoiser_rows: rows in them, a guided evaluation counting two: network calls.
        evaluations: evaluations asked for by lanes.
        looks: previews decoded and scored.
        look_batches: in how many batches.
        decodes: pictures decoded in full.
        busy: lane-ticks spent on an evaluation.
        capacity: lane-ticks there was room for.
    """

    denoiser_batches: int = 0
    denoiser_rows: int = 0
    evaluations: int = 0
    looks: int = 0
    look_batches: int = 0
    decodes: int = 0
    busy: int = 0
    capacity: int = 0

    def snapshot(self) -> dict[str, int]:
        """The counts as a plain dict."""
        return asdict(self)

    @property
    def utilisation(self) -> float:
        """Busy lane-ticks over lane-ticks, in [0, 1]."""
        return self.busy / self.capacity if self.capacity else 0.0


@dataclass
class Task:
    """A program in flight."""

    index: int
    program: Program
    waiting: Request | None = None
    done: bool = False
    result: Any = None

    def resume(self, answer: Any) -> None:
        """Sends the answer in and runs to the next request or the end."""
        try:
            self.waiting = self.program.send(answer)
        except StopIteration as stop:
            self.waiting, self.done, self.result = None, True, stop.value


@dataclass
class Engine:
    """Runs programs in step.

    Attributes:
        backbone: the model.
        scorers: what looks at previews and finished pictures.
        solver: name in :data:`backbones.solvers.SOLVERS`.
        decider: answers :class:`Decide` requests; only needed by programs that ask.
        max_batch: most lanes in one denoiser call; ``None`` for no limit.
        counters: what was done so far.
    """

    backbone: Backbone
    scorers: LookScorers
    solver: str = "ddim"
    decider: Decider | None = None
    max_batch: int | None = None
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        check_solver(self.solver, self.backbone.path)
        self._step = SOLVERS.load(self.solver)

    def run(self, programs: Iterable[Program], max_lanes: int | None = None) -> list[Any]:
        """Runs programs to their ends; returns their results in order.

        Args:
            programs: begun when there is a lane for them.
            max_lanes: most in flight at once; ``None`` runs all of them in step.
        """
        if max_lanes is None:
            programs = list(programs)
            max_lanes = max(1, len(programs))
        results = dict(self.stream(programs, max_lanes))
        return [results[index] for index in range(len(results))]

    def stream(self, programs: Iterable[Program], max_lanes: int) -> Iterator[tuple[int, Any]]:
        """Keeps up to ``max_lanes`` programs in flight; yields (position in ``programs``, result) as they end.

        A lane that ends is filled with the next program before the next denoiser call.
        """
        if max_lanes < 1:
            raise ConfigError(f"max_lanes must be at least 1, got {max_lanes}", "use 8")
        source = enumerate(programs)
        tasks: list[Task] = []
        more = True
        while True:
            while more and len(tasks) < max_lanes:
                entry = next(source, None)
                if entry is None:
                    more = False
                    break
                task = Task(*entry)
                task.resume(None)
                tasks.append(task)
            self._answer_all_but_evaluations(tasks)
            finished = [task for task in tasks if task.done]
            tasks = [task for task in tasks if not task.done]
            for task in finished:
                yield task.index, task.result
            if finished and more:
                continue  # fill the free lanes first
            if not tasks:
                return
            self._evaluate(tasks, room=max_lanes)

    def _answer_all_but_evaluations(self, tasks: Sequence[Task]) -> None:
        """Answers looks, decodes and decisions until every task has ended or waits for the denoiser."""
        while True:
            groups = {kind: [t for t in tasks if isinstance(t.waiting, kind)] for kind in (Peek, Finish, Decide)}
            if not any(groups.values()):
                return
            self._peek(groups[Peek])
            self._finish(groups[Finish])
            self._decide(groups[Decide])

    def _peek(self, tasks: Sequence[Task]) -> None:
        if not tasks:
            return
        requests: list[Any] = [task.waiting for task in tasks]
        with self._memory("looking at previews", len(tasks)):
            images = self.backbone.preview(torch.cat([request.x0 for request in requests]))
            looks = self.scorers.look(images, [request.prompt for request in requests])
        self.counters.looks += len(tasks)
        self.counters.look_batches += 1
        for row, task in enumerate(tasks):
            task.resume(looks.row(row))

    def _finish(self, tasks: Sequence[Task]) -> None:
        if not tasks:
            return
        requests: list[Any] = [task.waiting for task in tasks]
        with self._memory("decoding finished pictures", len(tasks)):
            images = self.backbone.decode(torch.cat([request.x for request in requests]))
            looks = self.scorers.look(images, [request.prompt for request in requests])
        self.counters.decodes += len(tasks)
        for row, task in enumerate(tasks):
            task.resume(Picture(images[row], looks.row(row)))

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

    def _evaluate(self, tasks: Sequence[Task], room: int) -> None:
        size = self.max_batch or len(tasks)
        self.counters.busy += len(tasks)
        self.counters.capacity += room
        for first in range(0, len(tasks), size):
            chunk = tasks[first : first + size]
            requests = [task.waiting for task in chunk]
            outcomes = self.evaluate([r for r in requests if isinstance(r, Evaluate)])
            for task, outcome in zip(chunk, outcomes, strict=True):
                task.resume(outcome)

    @torch.no_grad()
    def evaluate(self, requests: Sequence[Evaluate]) -> list[Outcome]:
        """Answers evaluations with one denoiser call and one solver step.

        Raises:
            NumericsError: when the denoiser returns NaN or infinity, naming the prompts.
            DeviceMemoryError: when the device's memory does not hold the batch.
        """
        latents = Latents.cat([request.latents for request in requests])
        conditioning = Conditioning.cat([request.conditioning for request in requests])
        scale = torch.tensor([request.guidance_scale for request in requests], dtype=torch.float64)
        capture = torch.tensor([request.capture for request in requests])
        with self._memory("evaluating the denoiser", len(requests)):
            prediction = self.backbone.predict(latents.x, latents.sigma, conditioning, scale, capture)
        self._check(prediction.x0, requests)
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
        stepped = self._step(self.backbone.path, latents, prediction.x0, levels, last)
        outcomes = []
        for row, request in enumerate(requests):
            at = slice(row, row + 1)
            outcomes.append(
                Outcome(
                    latents=request.latents if request.sigma_next is None else stepped.row(row),
                    x0=prediction.x0[at],
                    x0_text=prediction.x0_text[at],
                    calls=int(prediction.calls[row]),
                    attention=None if prediction.attention is None else prediction.attention[at],
                )
            )
        return outcomes

    @contextmanager
    def _memory(self, doing: str, lanes: int) -> Iterator[None]:
        """Within it running out of GPU memory is an error that says what to turn down."""
        try:
            yield
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"{self.backbone.device} ran out of memory {doing}: {lanes} lanes of backbone {self.backbone.name!r}",
                "use fewer lanes (lanes, num_envs; max_batch of an Engine), backbone_options.vae_tiling=true, or "
                "backbone_options.offload=model",
            ) from error

    @staticmethod
    def _check(x0: torch.Tensor, requests: Sequence[Evaluate]) -> None:
        finite = torch.isfinite(x0).flatten(1).all(1)
        if bool(finite.all()):
            return
        bad = [request for request, fine in zip(requests, finite.tolist(), strict=True) if not fine]
        first = bad[0]
        raise NumericsError(
            f"the denoiser returned NaN or infinity for {len(bad)} of {len(requests)} lanes, first at "
            f"sigma {float(first.latents.sigma[0]):.4g} for prompt {first.who[:60]!r}",
            "use dtype=float32 or bfloat16, a lower guidance_scale, or check the weights",
        )

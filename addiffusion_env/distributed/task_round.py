"""Runs independent tasks on a pool of actors; the tasks of a worker that dies or hangs are repeated on another one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from addiffusion_env.distributed.actor_pool import ActorPool, LostWorkerError, import_ray
from addiffusion_env.engine.lane import FaultCount
from addiffusion_env.errors import AdDiffusionError, WorkerError

POLL = 1.0
"""Seconds between two checks for tasks that exceed their time limit."""


@dataclass(frozen=True)
class Task:
    """One call of a worker's method.

    Attributes:
        arguments: of the method.
        images: number of images that it generates, for messages.
        seconds: time after which the worker counts as hanging.
        losses: number of workers lost while working on it.
    """

    arguments: tuple[Any, ...]
    images: int
    seconds: float
    losses: int = 0


class TaskRound:
    """Gives each worker the next task when it is free.

    Args:
        pool: the workers.
        method: name of the method that they are called by.
        tasks: in the order in which they are started.
    """

    def __init__(self, pool: ActorPool, method: str, tasks: Iterable[Task]) -> None:
        self.pool, self.method = pool, method
        self.waiting = deque(tasks)
        self.idle = list(range(len(pool.actors)))
        # Ray's reference -> index of the worker, its task, and when it counts as hanging (``time.monotonic``).
        self.running: dict[Any, tuple[int, Task, float]] = {}
        self.trouble: AdDiffusionError | None = None

    def stop(self, error: AdDiffusionError | None) -> None:
        """Starts no further task; the first error is raised when the running ones have ended. ``None`` does nothing."""
        self.trouble = self.trouble or error

    def drop(self, errors: Iterable[AdDiffusionError], faults: FaultCount) -> None:
        """Counts images that a worker left out; stops when all workers together left out too many."""
        for error in errors:
            try:
                faults.drop(error)
            except AdDiffusionError as last:
                self.stop(last)

    def answers(self) -> Iterator[tuple[Task, Any]]:
        """Yields tasks with their answers as they finish.

        Raises:
            WorkerError: if more than ``patience`` workers are lost over one task, or a worker cannot be started.
            AdDiffusionError: that of :meth:`stop`, or the first one that a worker raises.
        """
        ray = import_ray()
        while self.running or (self.waiting and self.trouble is None):
            while self.idle and self.waiting and self.trouble is None:
                self._give(self.idle.pop(), self.waiting.popleft())
            due = min(until for *_, until in self.running.values()) - time.monotonic()
            ready, _ = ray.wait(list(self.running), timeout=min(POLL, max(0.0, due)))
            now = time.monotonic()
            for ref in ready or [ref for ref, (*_, until) in self.running.items() if until < now]:
                yield from self._take(ref)
        if self.trouble is not None:
            raise self.trouble

    def _give(self, worker: int, task: Task) -> None:
        ref = self.pool.ask(worker, self.method, *task.arguments)
        self.running[ref] = worker, task, time.monotonic() + task.seconds

    def _take(self, ref: Any) -> Iterator[tuple[Task, Any]]:
        worker, task, until = self.running.pop(ref)
        self.idle.append(worker)
        try:
            answer = self.pool.answer(worker, ref, until)
        except LostWorkerError as error:
            self._lose(worker, task, error)
        except AdDiffusionError as error:
            self.stop(error)
        else:
            yield task, answer

    def _lose(self, worker: int, task: Task, error: LostWorkerError) -> None:
        task = replace(task, losses=task.losses + 1)
        if task.losses > self.pool.config.patience:
            self.stop(
                WorkerError(
                    f"{task.losses} Ray workers were lost over the same {task.images} images, the last one {error}",
                    "use fewer lanes, raise rollouts.timeout, or look at /tmp/ray/session_latest/logs",
                )
            )
        else:
            self.waiting.appendleft(task)
        self.pool.replace(worker, error)

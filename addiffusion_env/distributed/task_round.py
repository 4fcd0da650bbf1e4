"""Runs independent tasks on a pool of actors; the tasks of a worker that dies or hangs are repeated on another one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from addiffusion_env.distributed.actor_pool import ActorPool, LostWorkerError, import_ray
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


@dataclass(frozen=True)
class Running:
    """A task assigned to a worker.

    Attributes:
        worker: index of the worker.
        task: its task.
        until: time after which it counts as hanging, on the clock of ``time.monotonic``.
    """

    worker: int
    task: Task
    until: float


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
        self.running: dict[Any, Running] = {}
        self.trouble: AdDiffusionError | None = None

    def stop(self, error: AdDiffusionError | None) -> None:
        """Starts no further task; the first error is raised when the running ones have ended. ``None`` does nothing."""
        self.trouble = self.trouble or error

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
            ready, _ = ray.wait(list(self.running), timeout=POLL)
            now = time.monotonic()
            for ref in ready or [ref for ref, job in self.running.items() if job.until < now]:
                yield from self._take(ref)
        if self.trouble is not None:
            raise self.trouble

    def _give(self, worker: int, task: Task) -> None:
        ref = self.pool.ask(worker, self.method, *task.arguments)
        self.running[ref] = Running(worker, task, time.monotonic() + task.seconds)

    def _take(self, ref: Any) -> Iterator[tuple[Task, Any]]:
        job = self.running.pop(ref)
        try:
            answer = self.pool.answer(job.worker, ref, job.until)
        except LostWorkerError as error:
            self._lose(job, error)
            return
        except AdDiffusionError as error:
            self.idle.append(job.worker)
            self.stop(error)
            return
        self.idle.append(job.worker)
        yield job.task, answer

    def _lose(self, job: Running, error: LostWorkerError) -> None:
        task = replace(job.task, losses=job.task.losses + 1)
        if task.losses > self.pool.config.patience:
            self.stop(
                WorkerError(
                    f"{task.losses} Ray workers were lost over the same {task.images} images, the last one {error}",
                    "use fewer lanes, raise rollouts.timeout, or look at /tmp/ray/session_latest/logs",
                )
            )
        else:
            self.waiting.appendleft(task)
        self.pool.replace(job.worker, error)
        self.idle.append(job.worker)

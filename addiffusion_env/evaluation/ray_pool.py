"""Generates an evaluation's images in a pool of Ray actors; planning, skipping and recording stay with the runner."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch

from addiffusion_env.agents.factory import ROLLOUTS
from addiffusion_env.backbones.devices import resolve_device
from addiffusion_env.backbones.identity import difference_words
from addiffusion_env.distributed.actor_pool import ActorPool, BaseWorker, LostWorkerError, RayConfig, import_ray
from addiffusion_env.engine.lane import Fault, FaultCount
from addiffusion_env.envs.settings import EnvSettings, load_backbone, load_scorers
from addiffusion_env.errors import AdDiffusionError, WorkerError, check_settings, unknown
from addiffusion_env.evaluation.judges import Judges
from addiffusion_env.evaluation.runner import EvaluationContext, Job, Maker, Making, Plan, Shard, Work, in_turn, plan
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import Sampler

POLL = 1.0
"""Seconds between two checks for jobs that exceed their time limit."""


def maker(
    rollouts: Mapping[str, Any], samplers: Sequence[Sampler], settings: EnvSettings, judges: Sequence[str]
) -> Maker:
    """Selects how an evaluation's images are generated.

    Args:
        rollouts: ``kind: local`` for one sampler after the other in this process, ``kind: ray`` for a pool of actors,
            with the fields of :class:`RayConfig`.
        samplers: not bound yet; they are copied here, and bound in every actor.
        settings: settings from which an actor loads its backbone and scorers.
        judges: registry names; every actor judges its own images.

    Raises:
        UnknownNameError: for an unknown kind.
        ConfigError: for a setting that the kind does not have.
        MissingPackageError: for ``ray`` without the package.
    """
    if rollouts["kind"] == "local":
        check_settings("rollouts=local has", rollouts, ("kind", "lanes"))  # max_lanes sets the number of lanes
        return in_turn
    if rollouts["kind"] != "ray":
        raise unknown("rollouts.kind", str(rollouts["kind"]), ROLLOUTS)
    return RayPool(RayConfig.of(rollouts), samplers, settings, judges)


def prepare(
    samplers: Sequence[Sampler],
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    context: EvaluationContext,
    rollouts: Mapping[str, Any],
    settings: EnvSettings,
    judges: Sequence[str],
) -> tuple[list[Plan], Maker]:
    """The plan of an evaluation and the function that carries it out; see :func:`plan` and :func:`maker`."""
    make = maker(rollouts, samplers, settings, judges)  # before planning binds the samplers
    return plan(samplers, prompts, seeds, context), make


@dataclass(frozen=True)
class Chunk:
    """Jobs that are sent to a worker together: the images of a shard.

    Attributes:
        sampler: index of the sampler.
        uids: of its jobs.
        losses: number of workers lost while working on it.
    """

    sampler: int
    uids: tuple[str, ...]
    losses: int = 0


@dataclass(frozen=True)
class Made:
    """Result of a chunk.

    Attributes:
        shard: the finished records.
        dropped: (job, reason) of each image that was left out.
        error: the error that ended it early, or ``None``.
    """

    shard: Shard
    dropped: tuple[tuple[Job, Fault], ...]
    error: AdDiffusionError | None = None


class ImageWorker(BaseWorker):
    """Generates and judges images in a process with its own context and plan, equal to the runner's."""

    def setup(
        self,
        threads: int,
        samplers: bytes,
        settings: EnvSettings,
        judges: Sequence[str],
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        identity: Mapping[str, Any],
    ) -> None:
        """Loads everything, and plans as the runner did: uids are the same by construction.

        Raises:
            WorkerError: when it has other weights, precision or packages than the runner: its records would be
                labelled incorrectly.
        """
        torch.set_num_threads(threads)
        backbone = load_backbone(settings)
        process = settings.process(backbone.capabilities, backbone.name)
        held_out = Judges.of(judges, resolve_device(settings.device))
        self.context = EvaluationContext(backbone, load_scorers(backbone, settings.scorers), process, held_out)
        self.plans = plan(import_ray().cloudpickle.loads(samplers), prompts, seeds, self.context)
        own = self.plans[0].identity
        if own != identity:
            raise WorkerError(
                f"a Ray worker would generate other images than planned: {difference_words(identity, own)}",
                "give all machines the same weights and packages, and set device= and dtype=",
            )
        self.jobs = [{job.uid: job for job in entry.jobs} for entry in self.plans]

    def make(self, chunk: Chunk, making: Making) -> Made:
        """Generates a chunk's images; after an error the images finished before it are kept."""
        jobs = [self.jobs[chunk.sampler][uid] for uid in chunk.uids]
        dropped: list[tuple[Job, Fault]] = []
        making = replace(making, on_fault=lambda job, fault: dropped.append((job, fault)))
        shard: Shard = []
        try:
            for part in in_turn([(self.plans[chunk.sampler], [jobs])], self.context, making):
                shard += part
        except AdDiffusionError as error:
            return Made(shard, tuple(dropped), error)
        return Made(shard, tuple(dropped))


class RayPool:
    """A :class:`Maker` over Ray actors. Records equal those of :func:`in_turn`, except measured values (``seconds``).

    Every actor has its own model, scorers and judges, and takes the next shard's jobs when it is free. Records
    are returned to the runner, which writes them. An actor that dies or hangs is replaced and its jobs are repeated.

    Args:
        config: number of actors and resources of each.
        samplers: not bound yet.
        settings: settings from which an actor loads its backbone and scorers.
        judges: registry names.

    Raises:
        MissingPackageError: without Ray.
    """

    def __init__(
        self, config: RayConfig, samplers: Sequence[Sampler], settings: EnvSettings, judges: Sequence[str]
    ) -> None:
        self.config = config
        self._samplers: bytes = import_ray().cloudpickle.dumps(list(samplers))
        self._settings, self._judges = settings, list(judges)

    def __call__(self, work: Work, context: EvaluationContext, making: Making) -> Iterator[Shard]:
        """See :class:`Maker`; every worker has ``making.lanes`` and its own context.

        Raises:
            WorkerError: when more than ``patience`` workers are lost over one chunk, or a worker cannot be started.
        """
        chunks = deque(
            Chunk(index, tuple(job.uid for job in group)) for index, (_, groups) in enumerate(work) for group in groups
        )
        if not chunks:
            return
        config = replace(self.config, workers=min(self.config.workers, len(chunks)))
        jobs = work[0][0].jobs
        prompts = list({job.prompt.prompt_id: job.prompt for job in jobs}.values())
        seeds = list(dict.fromkeys(job.seed for job in jobs))
        arguments = (self._samplers, self._settings, self._judges, prompts, seeds, work[0][0].identity)
        pool = ActorPool(config, ImageWorker, [arguments] * config.workers, self._settings.device)
        with closing(pool):
            yield from _Round(pool, chunks, making).shards()


@dataclass(frozen=True)
class Running:
    """A chunk assigned to a worker.

    Attributes:
        worker: index of the worker.
        chunk: its chunk.
        until: time after which it counts as hanging, on the clock of ``time.monotonic``.
    """

    worker: int
    chunk: Chunk
    until: float


class _Round:
    """Runs the chunks of one evaluation through a pool."""

    def __init__(self, pool: ActorPool, chunks: deque[Chunk], making: Making) -> None:
        self.pool, self.chunks, self.making = pool, chunks, making
        self.idle = list(range(len(pool.actors)))
        self.running: dict[Any, Running] = {}
        self.trouble: AdDiffusionError | None = None

    def shards(self) -> Iterator[Shard]:
        """Yields shards as they finish; after an error, running chunks are awaited before it is raised."""
        ray = import_ray()
        while self.running or (self.chunks and self.trouble is None):
            while self.idle and self.chunks and self.trouble is None:
                self._give(self.idle.pop(), self.chunks.popleft())
            ready, _ = ray.wait(list(self.running), timeout=POLL)
            now = time.monotonic()
            for ref in ready or [ref for ref, job in self.running.items() if job.until < now]:
                shard = self._take(ref)
                if shard:
                    yield shard
        if self.trouble is not None:
            raise self.trouble

    def _give(self, worker: int, chunk: Chunk) -> None:
        waves = -(-len(chunk.uids) // self.making.lanes)
        until = time.monotonic() + self.pool.config.timeout * waves
        told = replace(self.making, faults=FaultCount(self.making.faults.limit), on_fault=None)
        ref = self.pool.ask(worker, "make", chunk, told)
        self.running[ref] = Running(worker, chunk, until)

    def _take(self, ref: Any) -> Shard:
        job = self.running.pop(ref)
        try:
            made: Made = self.pool.answer(job.worker, ref, job.until)
        except LostWorkerError as error:
            self._lose(job, error)
            return []
        self.idle.append(job.worker)
        self.trouble = self.trouble or made.error
        for dropped, fault in made.dropped:
            self._drop(dropped, fault)
        return made.shard

    def _drop(self, job: Job, fault: Fault) -> None:
        """Counts an image that a worker left out: the limit applies to all workers together."""
        try:
            self.making.faults.drop(fault.error)
        except AdDiffusionError as error:
            self.trouble = self.trouble or error
        if self.making.on_fault is not None:
            self.making.on_fault(job, fault)

    def _lose(self, job: Running, error: LostWorkerError) -> None:
        chunk = replace(job.chunk, losses=job.chunk.losses + 1)
        if chunk.losses > self.pool.config.patience:
            self.trouble = self.trouble or WorkerError(
                f"{chunk.losses} Ray workers were lost over the same {len(chunk.uids)} images, the last one {error}",
                "lower max_lanes, raise rollouts.timeout, or look at /tmp/ray/session_latest/logs",
            )
        else:
            self.chunks.appendleft(chunk)
        self.pool.replace(job.worker, error)
        self.idle.append(job.worker)

"""Generates an evaluation's images in a pool of Ray actors; planning, skipping and recording stay with the runner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from addiffusion_env.agents.factory import is_remote
from addiffusion_env.backbones.devices import resolve_device
from addiffusion_env.distributed.actor_pool import ActorPool, BaseWorker, RayConfig, import_ray
from addiffusion_env.distributed.task_round import Task, TaskRound
from addiffusion_env.engine.lane import Fault, FaultCount
from addiffusion_env.envs.settings import EnvSettings, load_backbone, load_scorers
from addiffusion_env.errors import AdDiffusionError
from addiffusion_env.evaluation.judges import Judges
from addiffusion_env.evaluation.records import Job
from addiffusion_env.evaluation.runner import EvaluationContext, Maker, Making, Shard, Work, in_turn, plan
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import Sampler

Chunk = tuple[int, tuple[str, ...]]
"""Index of a sampler, and the uids of the jobs that are sent to a worker together: the images of a shard."""


ChunkResult = tuple[Shard, list[tuple[Job, Fault]], AdDiffusionError | None]
"""Finished records of a chunk, (job, reason) of each image that was left out, and the error that ended it early."""


class ImageWorker(BaseWorker):
    """Generates and judges images in a process with its own context and plan, equal to the runner's."""

    def setup(
        self,
        samplers: bytes,
        settings: EnvSettings,
        judges: Sequence[str],
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        identity: Mapping[str, Any],
    ) -> None:
        """Loads everything, and plans as the runner did: uids are the same by construction."""
        backbone = load_backbone(settings)
        process = settings.process(backbone.capabilities, backbone.name)
        held_out = Judges.of(judges, resolve_device(settings.device))
        self.context = EvaluationContext(backbone, load_scorers(backbone, settings.scorers), process, held_out)
        self.plans = plan(import_ray().cloudpickle.loads(samplers), prompts, seeds, self.context)
        self.check_identity(identity, self.plans[0].identity)
        self.jobs = [{job.uid: job for job in entry.jobs} for entry in self.plans]

    def make(self, chunk: Chunk, making: Making) -> ChunkResult:
        """Generates a chunk's images; after an error the images finished before it are kept."""
        sampler, uids = chunk
        jobs = [self.jobs[sampler][uid] for uid in uids]
        dropped: list[tuple[Job, Fault]] = []
        making = replace(making, on_fault=lambda job, fault: dropped.append((job, fault)))
        shard: Shard = []
        try:
            for part in in_turn([(self.plans[sampler], [jobs])], self.context, making):
                shard += part
        except AdDiffusionError as error:
            return shard, dropped, error
        return shard, dropped, None


def maker(
    rollouts: Mapping[str, Any], samplers: Sequence[Sampler], settings: EnvSettings, judges: Sequence[str]
) -> Maker:
    """Selects how an evaluation's images are generated: one sampler after the other in this process, or in Ray actors.

    Args:
        rollouts: see :func:`.is_remote`.
        samplers: not bound yet: call it before :func:`plan`, which binds them. They are bound in every actor.
        settings: settings from which an actor loads its backbone and scorers.
        judges: registry names; every actor judges its own images.

    Raises:
        UnknownNameError: for an unknown kind.
        ConfigError: for a setting that the kind does not have.
        MissingPackageError: for ``ray`` without the package.
    """
    if not is_remote(rollouts):
        return in_turn
    config, unbound = RayConfig.of(rollouts), import_ray().cloudpickle.dumps(list(samplers))
    return partial(in_actors, config, unbound, settings, list(judges))


def in_actors(
    config: RayConfig,
    samplers: bytes,
    settings: EnvSettings,
    judges: Sequence[str],
    work: Work,
    context: EvaluationContext,
    making: Making,
) -> Iterator[Shard]:
    """A :class:`Maker` over Ray actors. Records equal those of :func:`in_turn`, except measured values (``seconds``).

    Every actor has its own model, scorers, judges and ``making.lanes``, and takes the next shard's jobs when it is
    free. Records are returned to the runner, which writes them. An actor that dies or hangs is replaced and its jobs
    are repeated. The first four arguments are those of :func:`maker`, the samplers pickled.

    Raises:
        WorkerError: when more than ``patience`` workers are lost over one chunk, or a worker cannot be started.
    """
    chunks: list[Chunk] = [
        (index, tuple(job.uid for job in group)) for index, (_, groups) in enumerate(work) for group in groups
    ]
    if not chunks:
        return
    config = replace(config, workers=min(config.workers, len(chunks)))
    jobs = work[0][0].jobs
    prompts = list({job.prompt.prompt_id: job.prompt for job in jobs}.values())
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    arguments = (samplers, settings, judges, prompts, seeds, work[0][0].identity)
    pool = ActorPool(config, ImageWorker, [arguments] * config.workers, settings.device)
    with closing(pool):
        told = replace(making, faults=FaultCount(making.faults.limit), on_fault=None)
        tasks = TaskRound(
            pool,
            "make",
            [
                Task(((index, uids), told), len(uids), config.timeout * -(-len(uids) // making.lanes))
                for index, uids in chunks
            ],
        )
        for _, (shard, dropped, error) in tasks.answers():
            tasks.stop(error)
            tasks.drop((fault.error for _, fault in dropped), making.faults)
            for job, fault in dropped:
                making.left_out(job, fault)
            if shard:
                yield shard

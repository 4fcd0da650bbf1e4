"""Samplers x prompts x seeds -> records, shard by shard; within a shard a finished lane takes the next prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.fingerprint import digest_of
from addiffusion_env.backbones.identity import identity_of
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import LANE_ERRORS, Fault, FaultCount
from addiffusion_env.engine.lanes import lanes_of
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.judges import Judges
from addiffusion_env.evaluation.records import (
    Finished,
    Job,
    Plan,
    Record,
    prompt_key,
    record_of,
    uid_of,
    variant_of,
    with_last_decision,
)
from addiffusion_env.evaluation.store import RecordStore, png_bytes
from addiffusion_env.profiling import Meter
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import BilledEpisode, NeedsPrompts, Sampler, placed
from addiffusion_env.scorers.image_scores import ImageScorers

RECORDS_FOLDER = "records"


@dataclass(frozen=True)
class EvaluationContext:
    """Model, scorers, process and judges shared by the samplers of an evaluation.

    Attributes:
        backbone: the model.
        scorers: score the images for the samplers.
        process: the base process; each sampler derives its own from it.
        judges: held-out judges of the finished images.
    """

    backbone: Backbone
    scorers: ImageScorers
    process: ProcessConfig
    judges: Judges = field(default_factory=Judges)


Shard = list[tuple[Record, bytes | None]]
"""Records in order of completion, each with its image as a PNG file if images are kept."""

Work = Sequence[tuple[Plan, Sequence[Sequence[Job]]]]
"""Plans, each with the groups of its remaining jobs; a group's images are generated together."""


@dataclass(frozen=True)
class Making:
    """Settings of carrying out a plan.

    Attributes:
        lanes: images in progress at once.
        halve: halve the batch of model calls when the device's memory runs out.
        keep_images: whether to keep images; or the uids of the images to keep.
        faults: counts images that were left out and holds their limit.
        on_fault: called for each.
    """

    lanes: int
    halve: bool = False
    keep_images: bool | frozenset[str] = False
    faults: FaultCount = field(default_factory=FaultCount)
    on_fault: Callable[[Job, Fault], None] | None = None

    def left_out(self, job: Job, fault: Fault) -> None:
        """Reports an image that was left out."""
        if self.on_fault is not None:
            self.on_fault(job, fault)


class Maker(Protocol):
    """Carries out plans: one sampler after the other (:func:`in_turn`), or in a pool of Ray actors."""

    def __call__(self, work: Work, context: EvaluationContext, making: Making) -> Iterator[Shard]:
        """Yields the results of each group when it is done, also those finished before an error; may be empty."""


def plan(
    samplers: Sequence[Sampler], prompts: Sequence[Prompt], seeds: Sequence[int], context: EvaluationContext
) -> list[Plan]:
    """Plans the images of an evaluation.

    Args:
        samplers: samplers with unique names.
        prompts: prompts with unique ids.
        seeds: one image per prompt and seed; shared by all samplers, so differences are paired.
        context: the model, its scorers and judges; every sampler is bound to it.

    Raises:
        ConfigError: for duplicate sampler names, prompt ids or seeds, or an empty list.
        CapabilityError: when the backbone lacks a capability that a sampler needs.
    """
    for what, names in (
        ("sampler", [sampler.name for sampler in samplers]),
        ("prompt", [prompt.prompt_id for prompt in prompts]),
        ("seed", [str(seed) for seed in seeds]),
    ):
        if not names:
            raise ConfigError(f"an evaluation needs at least one {what}, got none", f"name a {what}")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"{what} {twice!r} is given more than once", "records are identified by it: give it once")
    context.scorers.embed_texts(prompts)
    identity, plans = identity_of(backbone=context.backbone, scorers=context.scorers, judges=context.judges), []
    digest, keys = digest_of(identity), [prompt_key(prompt) for prompt in prompts]
    for sampler in samplers:
        sampler.bind(context.backbone, context.scorers)
        if isinstance(sampler, NeedsPrompts):
            sampler.setup(prompts)
        process = placed(sampler, context.process, context.backbone)
        variant = variant_of(sampler, context.backbone.name, process, digest)
        jobs = tuple(
            Job(uid_of(variant, key, seed), prompt, int(seed))
            for key, prompt in zip(keys, prompts, strict=True)
            for seed in seeds
        )
        plans.append(Plan(sampler, process, variant, jobs, identity))
    return plans


def evaluate(
    samplers: Sequence[Sampler],
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    context: EvaluationContext,
    out_dir: Path | str,
    **settings: Any,
) -> list[Record]:
    """Generates, judges and records every image of samplers x prompts x seeds that is not recorded yet.

    Combines :func:`plan` and :func:`carry_out`; see there for arguments (``settings``), result and errors.
    """
    return carry_out(plan(samplers, prompts, seeds, context), context, out_dir, **settings)


def carry_out(
    plans: Sequence[Plan],
    context: EvaluationContext,
    out_dir: Path | str,
    *,
    max_lanes: int | str = 8,
    shard_size: int = 32,
    keep_images: bool | frozenset[str] = False,
    max_faults: int = 0,
    on_records: Callable[[Sequence[Record]], None] | None = None,
    on_fault: Callable[[Job, Fault], None] | None = None,
    make: Maker | None = None,
) -> list[Record]:
    """Generates, judges and records every planned image that is not recorded yet.

    Samplers run one after the other, so that their seconds are measured separately. Images depend only on prompt,
    seed and sampler: records are independent of ``max_lanes``, except for rounding and measured values (``seconds``,
    ``peak_memory``). With the same settings they are bitwise reproducible, also after an interruption, on one processor
    (its instruction set), with the same number of threads and the same versions of torch, diffusers and transformers.

    Args:
        plans: from :func:`plan`.
        context: the model, its scorers and judges.
        out_dir: the run's folder; records go to ``records`` in it.
        max_lanes: images in progress at once; ``"auto"`` uses smaller batches when memory runs out.
        shard_size: images per shard, generated and written together: the most that an interruption loses. Lanes become
            idle at the end of a shard, so it should be a multiple of ``max_lanes``.
        keep_images: keep every image as PNG, or those of these uids.
        max_faults: number of images over all samplers that may be left out because of NaN or an error of a
            scorer; 0 raises the first such error. The next run tries them again.
        on_records: called with the existing records, and with each new shard.
        on_fault: called for each image that is left out.
        make: carries out the work; ``None`` is :func:`in_turn`.

    Returns:
        The records by sampler, prompt and seed, in the order given; without those left out.

    Raises:
        ConfigError: for ``max_lanes`` or ``shard_size`` below 1.
        RunFolderError: when records cannot be written.
        NumericsError, ScorerError: when more images fail than ``max_faults``; what was finished before is recorded.
    """
    if shard_size < 1:
        raise ConfigError(f"shard_size must be at least 1, got {shard_size}", "use 32")
    lanes, halve = lanes_of(max_lanes, "max_lanes")
    making = Making(lanes, halve, keep_images, FaultCount(max_faults), on_fault)
    store = RecordStore(Path(out_dir) / RECORDS_FOLDER)
    store.set_aside_damaged()
    found = {record.uid: record for record in store.read()}
    work = []
    for entry in plans:
        groups = _waiting(entry, found, shard_size)
        work.append((entry, groups))
        waiting = {job.uid for group in groups for job in group}
        if on_records is not None and len(waiting) < len(entry.jobs):
            on_records([found[job.uid] for job in entry.jobs if job.uid not in waiting])
    for made in (make or in_turn)(work, context, making):
        if not made:
            continue  # every image of the shard was left out
        records = [record for record, _ in made]
        store.write(records, {record.uid: png for record, png in made if png is not None})
        found.update((record.uid, record) for record in records)
        if on_records is not None:
            on_records(records)
    return [found[job.uid] for entry in plans for job in entry.jobs if job.uid in found]


def to_make(out_dir: Path | str, plans: Sequence[Plan], shard_size: int) -> list[int]:
    """Number of images of each plan that :func:`carry_out` would generate: missing ones, in whole shards."""
    found = {record.uid: record for record in RecordStore(Path(out_dir) / RECORDS_FOLDER).read()}
    return [sum(map(len, _waiting(entry, found, shard_size))) for entry in plans]


def _waiting(entry: Plan, found: Mapping[str, Record], shard_size: int) -> list[tuple[Job, ...]]:
    """The groups of a sampler's jobs with missing records.

    Groups are formed from the plan, not from the missing images, and generated completely: the images that share a
    batch are then the same after an interruption, and their records are bitwise equal.
    """
    groups = [entry.jobs[first : first + shard_size] for first in range(0, len(entry.jobs), shard_size)]
    return [group for group in groups if not all(job.uid in found for job in group)]


def in_turn(work: Work, context: EvaluationContext, making: Making) -> Iterator[Shard]:
    """One sampler after the other, in this process."""
    for entry, groups in work:
        engine = Engine(
            context.backbone,
            context.scorers,
            solver=entry.process.solver,
            decider=entry.sampler.decide,
            halve=making.halve,
            faults=making.faults,
        )
        kept = making.keep_images
        for made in _make(entry, groups, context, making, engine):
            keeps = [kept is True or (kept and record.uid in kept) for record, _ in made]
            yield [(record, png_bytes(pixels) if k else None) for (record, pixels), k in zip(made, keeps, strict=True)]


def _make(
    entry: Plan, groups: Sequence[Sequence[Job]], context: EvaluationContext, making: Making, engine: Engine
) -> Iterator[list[tuple[Record, np.ndarray]]]:
    """Generates groups of a sampler's images; yields each when it is done, and partial ones before an error."""
    elapsed = 0.0
    for group in groups:
        coroutines = (
            with_last_decision(entry.sampler.coroutine(context.backbone, entry.process, job.prompt, job.seed))
            for job in group
        )
        made: list[tuple[Job, Finished]] = []
        trouble: BaseException | None = None
        meter = Meter(context.backbone.device)
        try:
            for place, ended in engine.stream(coroutines, making.lanes):
                if isinstance(ended, Fault):
                    making.left_out(group[place], ended)
                else:
                    made.append((group[place], ended))
        except (Exception, KeyboardInterrupt) as error:
            trouble = error  # finished images are kept even if others failed
        usage = meter.read()
        elapsed += usage.seconds
        if made:
            rate = elapsed / max(1, engine.counters.denoiser_rows)  # seconds per network call
            yield _judged(entry, made, context, making, rate, usage.peak_bytes)
        if trouble is not None:
            raise trouble


def _judged(
    entry: Plan,
    made: Sequence[tuple[Job, Finished]],
    context: EvaluationContext,
    making: Making,
    rate: float,
    peak: int | None,
) -> list[tuple[Record, np.ndarray]]:
    """Finished episodes as records and (h, w, 3) uint8 images.

    If the judges fail on a shard, its images are judged one by one, and those that fail are left out.
    """
    images, prompts = [done.episode.image.tensor for _, done in made], [job.prompt for job, _ in made]
    try:
        judgements = context.judges.judge(images, prompts)
    except LANE_ERRORS as error:
        if making.faults.limit and len(made) > 1:
            return [row for one in made for row in _judged(entry, [one], context, making, rate, peak)]
        making.left_out(made[0][0], making.faults.drop(error))
        return []
    rows = []
    for (job, done), judgement in zip(made, judgements, strict=True):
        episode = done.episode
        seconds = episode.lane.calls * rate
        if isinstance(episode, BilledEpisode):
            judgement = replace(judgement, extra={**judgement.extra, **episode.costs})
            seconds = seconds if episode.seconds is None else episode.seconds
        record = record_of(entry, job, done, judgement, context.backbone.name, seconds, peak)
        rows.append((record, episode.image.pixels()))
    return rows

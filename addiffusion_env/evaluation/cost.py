"""What a run costs before it starts: images, evaluations, time, memory and disk of each stage, on this machine.

There is one estimator for all commands: the work of a stage is counted from its settings (:class:`Work`), the cost of
its units is measured (:func:`measure_units`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.episode import play
from addiffusion_env.engine.lanes import lanes_of
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.evaluation.records import Plan
from addiffusion_env.evaluation.runner import EvaluationContext
from addiffusion_env.profiling import Meter
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import BaseSampler, fixed_schedule
from addiffusion_env.scorers.image_scores import ImageScorers

SHORT, LONG = 2, 6
"""Steps of the two schedules that are timed: their difference is the cost of steps alone."""
SLOW = 2.0
"""Seconds a step of a single image above which the others wait in vain: one lane is timed instead of all."""
RECORD_BYTES = 1_000
"""Of one image's record, compressed."""


@dataclass(frozen=True)
class Work:
    """Counted work.

    Attributes:
        images: finished images that are kept.
        nfe: guided evaluations.
        calls: network calls.
        looks: previews decoded and scored.
        finishes: images fully decoded and scored, those of rejected attempts included.
    """

    images: float = 0.0
    nfe: float = 0.0
    calls: float = 0.0
    looks: float = 0.0
    finishes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(Work)))

    def times(self, factor: float) -> Work:
        """The work repeated ``factor`` times."""
        return Work(*(getattr(self, item.name) * factor for item in fields(Work)))

    @classmethod
    def attempt(cls, backbone: Backbone, process: ProcessConfig, looks: bool) -> Work:
        """One attempt along the whole schedule of a process; with a preview at every decision if ``looks``."""
        calls = process.calls_of(backbone.sigmas(process.steps, process.spacing)[:-1])
        seen = len(process.decision_steps) if looks and backbone.capabilities.previews else 0
        return cls(1, process.cost(calls)[0], calls, seen, 1)


@dataclass(frozen=True)
class UnitCosts:
    """Seconds of each unit of work with all lanes busy, measured on this machine.

    Attributes:
        call: of one network call.
        look: to decode and score a preview.
        finish: to begin an image (its prompt) and to decode and score it.
        guided: network calls of a guided evaluation.
        lanes: images in progress at once.
        peak_bytes: peak memory of the measurement; ``None`` if the system does not report it.
    """

    call: float
    look: float
    finish: float
    guided: int = 2
    lanes: int = 1
    peak_bytes: int | None = None

    def seconds(self, work: Work) -> float:
        """Time of some work."""
        return self.call * work.calls + self.look * work.looks + self.finish * work.finishes

    def __str__(self) -> str:
        step, look, finish = (1000 * value for value in (self.call * self.guided, self.look, self.finish))
        memory = "" if self.peak_bytes is None else f", {self.peak_bytes / 2**30:.1f} GiB of memory"
        return (
            f"measured now, {self.lanes} lanes: {step:.0f} ms an evaluation, {look:.0f} ms a scored preview, "
            f"{finish:.0f} ms a finished image{memory}"
        )


def measure_units(
    backbone: Backbone, scorers: ImageScorers, process: ProcessConfig, prompts: Sequence[Prompt], max_lanes: int | str
) -> UnitCosts:
    """Measures the unit costs with a few short schedules of all lanes.

    Args:
        backbone: the model.
        scorers: score previews and finished images.
        process: its guidance and solver are used.
        prompts: at least one; repeated to fill the lanes.
        max_lanes: images in progress at once.
    """
    lanes = lanes_of(max_lanes, "max_lanes")[0]

    def run(steps: int, looks: bool, count: int) -> tuple[Meter, Engine, float]:
        meter = Meter(backbone.device)
        engine = _schedules(backbone, scorers, process, prompts, steps, looks, count)
        return meter, engine, meter.read().seconds

    warm_up(backbone, scorers, process, prompts)
    count = 1 if run(SHORT, False, 1)[2] > SLOW * SHORT else lanes
    run(SHORT, True, count)
    _, few, short = run(SHORT, False, count)
    _, many, long = run(LONG, False, count)
    seen, looked, scored = run(LONG, True, count)
    rows = many.counters.denoiser_rows - few.counters.denoiser_rows
    call = max(long - short, 0.0) / max(rows, 1)
    finish = max(short - call * few.counters.denoiser_rows, 0.0) / count
    looks = looked.counters.looks
    look = max(scored - finish * count - call * looked.counters.denoiser_rows, 0.0) / max(looks, 1)
    return UnitCosts(
        call, look, finish, process.network_calls[process.guidance_scale != 1], count, seen.read().peak_bytes
    )


def warm_up(backbone: Backbone, scorers: ImageScorers, process: ProcessConfig, prompts: Sequence[Prompt]) -> None:
    """Generates one short image: the first calls of a network load and compile, which is no time of an image's."""
    _schedules(backbone, scorers, process, prompts, SHORT, True, 1)


def _schedules(
    backbone: Backbone,
    scorers: ImageScorers,
    process: ProcessConfig,
    prompts: Sequence[Prompt],
    steps: int,
    looks: bool,
    count: int,
) -> Engine:
    """Runs ``count`` images of fixed steps; returns the engine, for its counters."""
    schedule = fixed_schedule(process, steps)  # it has a decision after every step
    engine = Engine(backbone, scorers, solver=schedule.solver, decider=BaseSampler().decide)
    engine.run(play(backbone, schedule, prompts[i % len(prompts)], i, looks) for i in range(count))
    return engine


@dataclass(frozen=True)
class Stage:
    """A part of a run.

    Attributes:
        name: what it does.
        least: its work if no image is attempted again.
        most: its work if every attempt is made; the same as ``least`` where it is known.
        expected: the work that the time is estimated for.
        more: seconds of other work that grows with the images (learning from them).
        fixed: seconds that do not.
        disk: bytes it writes.
    """

    name: str
    least: Work
    most: Work
    expected: Work
    more: float = 0.0
    fixed: float = 0.0
    disk: float = 0.0

    @classmethod
    def known(cls, name: str, work: Work, **more: float) -> Stage:
        """A stage whose work is known."""
        return cls(name, work, work, work, **more)

    def seconds(self, units: UnitCosts, share: float = 1.0) -> float:
        """Time with a share of the images."""
        return self.fixed + share * (self.more + units.seconds(self.expected))


@dataclass(frozen=True)
class RunCost:
    """The stages of a run and the unit costs of this machine.

    Attributes:
        stages: in order.
        units: measured; ``None`` where they were not, or there is nothing left to do.
        images: number of images of the whole run, those that are recorded already included.
    """

    stages: tuple[Stage, ...]
    units: UnitCosts | None
    images: int = 0

    def seconds(self, share: float = 1.0) -> float:
        """Time of all stages with a share of the images."""
        return 0.0 if self.units is None else sum(stage.seconds(self.units, share) for stage in self.stages)

    def __str__(self) -> str:
        """One line, as an evaluation prints before it starts."""
        waiting = sum((stage.least for stage in self.stages), Work())
        most = sum((stage.most for stage in self.stages), Work())
        count = f"{self.images} images, {waiting.images:.0f} of them to be generated"
        if not waiting.images:
            return f"plan: {count}"
        nfe = f"{waiting.nfe:,.0f}" if waiting.nfe == most.nfe else f"{waiting.nfe:,.0f} to {most.nfe:,.0f}"
        return f"plan: {count}; {nfe} NFE"

    def table(self) -> str:
        """Every stage on a line, the sum, and what fewer prompts would take."""
        if self.units is None:
            return f"{self}: nothing is left to do"
        head = ("stage", "images", "NFE", "time", "disk")
        rows = [head]
        for stage in self.stages:
            work = stage.expected
            seconds = stage.seconds(self.units)
            rows.append((stage.name, f"{work.images:,.0f}", f"{work.nfe:,.0f}", duration(seconds), size(stage.disk)))
        disk = sum(stage.disk for stage in self.stages)
        rows.append(("all", "", "", duration(self.seconds()), size(disk)))
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        fewer = ", ".join(f"{words} {duration(self.seconds(share))}" for words, share in SHARES)
        return "\n".join([f"plan: {self.units}", *lines, f"with fewer prompts: {fewer}"])


SHARES = (("half of them", 0.5), ("a quarter", 0.25), ("a tenth", 0.1))


def duration(seconds: float) -> str:
    """A time in hours, minutes and seconds.

    >>> duration(7.4), duration(83), duration(7325)
    ('7 s', '1 min 23 s', '2 h 2 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600:,} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """A number of bytes.

    >>> size(900), size(3.2e6), size(4e9)
    ('1 kB', '3 MB', '4.0 GB')
    """
    return (
        f"{count / 1e9:.1f} GB"
        if count >= 1e9
        else f"{count / 1e6:.0f} MB"
        if count >= 1e6
        else f"{count / 1e3:.0f} kB"
    )


def recording_work(backbone: Backbone, process: ProcessConfig, attempts: int) -> Work:
    """Work of recording one image of a table of attempts: every attempt, and every early exit from it."""
    levels = backbone.sigmas(process.steps, process.spacing)
    one = Work.attempt(backbone, process, looks=True)
    for step in process.decision_steps:
        one += early_exit_work(backbone, process, levels[step:])
    starts = attempts if process.refine.return_to == 0 else 1  # attempts that begin before the first evaluation
    found = one.times(attempts) + early_exit_work(backbone, process, levels).times(starts)
    return replace(found, images=1)


def early_exit_work(backbone: Backbone, process: ProcessConfig, rest: np.ndarray) -> Work:
    """Work of an early exit with the noise levels ``rest`` left; none where it takes all of them anyway."""
    ahead = backbone.early_exit_levels(rest, process.early_exit_steps)
    if len(ahead) == len(rest):
        return Work()  # it takes the rest of the schedule
    calls = process.calls_of(ahead[:-1])
    return Work(nfe=process.cost(calls)[0], calls=calls, finishes=1)


def table_bytes(process: ProcessConfig, attempts: int, width: int) -> float:
    """Bytes of one image of a table of attempts; ``width`` numbers at each place."""
    return 4.0 * width * attempts * (2 * len(process.decision_steps) + 1)


def plan_cost(
    plans: Sequence[Plan],
    context: EvaluationContext,
    waiting: Sequence[int],
    max_lanes: int | str,
    measure: bool = True,
) -> RunCost:
    """Counts the remaining work of an evaluation, and measures the speed of this machine.

    Args:
        plans: of :func:`addiffusion_env.evaluation.runner.plan`.
        context: what they run on.
        waiting: number of missing images of each plan, by :func:`addiffusion_env.evaluation.runner.to_make`.
        max_lanes: number of images in progress at once; the speed is measured with fewer where fewer are missing.
        measure: whether to measure, which takes as long as some images.
    """
    stages = []
    for entry, count in zip(plans, waiting, strict=True):
        least, most = (work.times(count) for work in work_range(entry.sampler, entry.process, context.backbone))
        expected = (least + most).times(0.5)
        stages.append(Stage(entry.sampler.name, least, most, expected, disk=RECORD_BYTES * count))
    units = None
    if measure and any(waiting):
        lanes = min(lanes_of(max_lanes, "max_lanes")[0], max(waiting))  # samplers run one after the other
        prompts = [job.prompt for job in plans[0].jobs[:lanes]]
        units = measure_units(context.backbone, context.scorers, context.process, prompts, lanes)
    return RunCost(tuple(stages), units, sum(len(entry.jobs) for entry in plans))


def work_range(sampler: Any, process: ProcessConfig, backbone: Backbone) -> tuple[Work, Work]:
    """(least, most) work of one image of a sampler: with one attempt and with all; for a policy what it was measured.

    Args:
        sampler: bound to the backbone.
        process: its own.
        backbone: the model.
    """
    one = Work.attempt(backbone, process, bool(sampler.needs_preview))
    spends = getattr(sampler, "expected_nfe", None)
    if spends is not None:
        attempts = max(1.0, spends / one.nfe)
        work = replace(one.times(attempts), images=1, nfe=spends, calls=one.calls * spends / one.nfe)
        return work, work
    least, most = getattr(sampler, "attempt_counts", (1, 1))
    return replace(one.times(least), images=1), replace(one.times(most), images=1)

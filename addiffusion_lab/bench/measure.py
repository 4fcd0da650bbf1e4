"""Measures arms alternately, round by round."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from addiffusion_env.backbones.devices import instruction_set
from addiffusion_env.pages import markdown_table
from addiffusion_env.profiling import Clock, peak_bytes, reset_peak
from addiffusion_lab.bench import ARMS
from addiffusion_lab.bench.arms import BareDenoiser, by_sampler
from addiffusion_lab.bench.setup import Arm, BenchmarkSetup


@dataclass(frozen=True)
class ArmResult:
    """The result of an arm at one number of lanes; medians over rounds.

    Attributes:
        arm: name of the arm.
        backbone: name of the backbone.
        lanes: images at once.
        steps: steps of the schedule.
        lane_steps: evaluations of single lanes per second (a guided evaluation counts as one).
        ms: milliseconds per lane-step.
        of_bare: lane-steps per second relative to the bare loop in the same round; ``None`` when it was not run.
        images: images per second; ``None`` for an arm that generates none.
        shares: share of the time in ``denoise``, ``look`` (previews and scores), ``decode`` and ``python``, summing to
            1; ``None`` if the calls are not this package's.
        peak: peak memory in MiB, weights included (resident on a CPU, over all processes of the arm); ``None`` if the
            system does not report it.
        rounds: number of timed rounds.
    """

    arm: str
    backbone: str
    lanes: int
    steps: int
    lane_steps: float
    ms: float
    of_bare: float | None
    images: float | None
    shares: dict[str, float] | None
    peak: float | None
    rounds: int


@dataclass(frozen=True)
class Round:
    """One timed round of one arm.

    Attributes:
        seconds: total time.
        lane_steps: lane-steps taken.
        images: images finished.
        stages: seconds by part; all 0 for an arm whose calls are not timed.
        peak: peak memory in MiB.
    """

    seconds: float
    lane_steps: float
    images: int
    stages: dict[str, float]
    peak: float | None


def make_arms(setup: BenchmarkSetup, names: Sequence[str], samplers: Sequence[str]) -> list[Arm]:
    """Creates the arms, one after another.

    Raises:
        UnknownNameError: for an unknown arm or sampler.
    """
    # Another process cannot construct a model that is not registered.
    wanted = [name for name in names if name != "subproc" or setup.settings is not None]
    makers: list[Callable[[BenchmarkSetup], Arm]] = [ARMS.load(name) for name in wanted]
    return [*(make(setup) for make in makers), *(by_sampler(setup, spec) for spec in samplers)]


def measure(
    setup: BenchmarkSetup, names: Sequence[str], samplers: Sequence[str], rounds: int, clock: str
) -> list[ArmResult]:
    """Runs every arm once to warm up and ``rounds`` times alternately.

    Args:
        setup: the benchmark setup.
        names: names of arms, keys of :data:`ARMS`.
        samplers: specifications of samplers to run through the pipeline.
        rounds: number of timed rounds.
        clock: ``wall`` or ``cpu``; see :class:`addiffusion_env.profiling.Clock`.
    """
    arms = make_arms(setup, names, samplers)
    found: dict[str, list[Round]] = {arm.name: [] for arm in arms}
    watch = Clock(clock, setup.backbone.device)
    try:
        for number in range(rounds + 1):
            for arm in arms:
                arm.prepare(number)
                timed = one_round(setup, arm, watch)
                if number:
                    found[arm.name].append(timed)
    finally:
        for arm in arms:
            arm.close()
    bare = found.get(BareDenoiser.name)
    return [result(setup, name, own, bare) for name, own in found.items()]


def one_round(setup: BenchmarkSetup, arm: Arm, clock: Clock) -> Round:
    """Times one round of one arm."""
    device, untimed = setup.backbone.device, dict.fromkeys(STAGES, 0.0)
    reset_peak(device)
    with timed_stages(setup, clock) if arm.own_calls else nullcontext(untimed) as stages, torch.no_grad():
        began = clock(arm.pids)
        done = arm.round()
        seconds = clock(arm.pids) - began
    peak = peak_bytes(device, arm.pids)
    mib = None if peak is None else peak / 2**20
    return Round(seconds, done.lane_steps, done.images, stages, mib)


def result(setup: BenchmarkSetup, name: str, rounds: Sequence[Round], bare: Sequence[Round] | None) -> ArmResult:
    """The medians of an arm's rounds."""
    speeds = [one.lane_steps / one.seconds for one in rounds]
    speed = statistics.median(speeds)
    limits = None if bare is None else [one.lane_steps / one.seconds for one in bare]
    images = [one.images / one.seconds for one in rounds]
    peaks = [one.peak for one in rounds if one.peak is not None]
    return ArmResult(
        arm=name,
        backbone=setup.backbone.name,
        lanes=setup.lanes,
        steps=setup.steps,
        lane_steps=speed,
        ms=1000 / speed,
        of_bare=None if limits is None else statistics.median(a / b for a, b in zip(speeds, limits, strict=True)),
        images=statistics.median(images) if any(images) else None,
        shares=shares_of(rounds),
        peak=max(peaks) if peaks else None,
        rounds=len(rounds),
    )


def shares_of(rounds: Sequence[Round]) -> dict[str, float] | None:
    """The share of each part in the time of all rounds; Python is the remainder."""
    total = sum(one.seconds for one in rounds)
    shares = {stage: sum(one.stages[stage] for one in rounds) / total for stage in STAGES}
    return {**shares, "python": max(0.0, 1 - sum(shares.values()))} if any(shares.values()) else None


def device_in_words(device: torch.device) -> str:
    """The GPU's name, or the processor with its instruction set and torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    return f"{cpu} CPU ({instruction_set()}), {torch.get_num_threads()} threads"


STAGES = ("denoise", "look", "decode")
"""Parts that are timed separately; the rest of a round is Python: coroutines, solver, policy, observations."""


@contextmanager
def timed_stages(setup: BenchmarkSetup, clock: Clock) -> Iterator[dict[str, float]]:
    """Context manager that times the calls of denoiser, previewer, scorers and decoder.

    Yields the seconds of each of :data:`STAGES`.
    """
    calls = [
        (setup.backbone, "predict", "denoise"),
        (setup.backbone, "preview", "look"),
        (setup.scorers, "scores", "look"),
        (setup.backbone, "decode", "decode"),
    ]
    seconds = dict.fromkeys(STAGES, 0.0)

    def timing(call: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            try:
                return call(*args, **kwargs)
            finally:
                seconds[stage] += clock() - began

        return timed

    for owner, name, stage in calls:
        setattr(owner, name, timing(getattr(owner, name), stage))
    try:
        yield seconds
    finally:
        for owner, name, _ in calls:
            delattr(owner, name)  # restores the class's method


HEADS = ("arm", "lanes", "ms per lane-step", "of bare", "images /s", *STAGES, "python", "peak MiB")


def row(result: ArmResult) -> tuple[str, ...]:
    """The cells of one arm."""
    shares = result.shares
    parts = ["-"] * 4 if shares is None else [f"{100 * shares[name]:.0f} %" for name in (*STAGES, "python")]
    return (
        result.arm,
        str(result.lanes),
        f"{result.ms:.1f}",
        "-" if result.of_bare is None else f"{100 * result.of_bare:.0f} %",
        "-" if result.images is None else f"{result.images:.2f}",
        *parts,
        "-" if result.peak is None else f"{result.peak:.0f}",
    )


def table(results: Sequence[ArmResult]) -> str:
    """All arms as a Markdown table."""
    return markdown_table(HEADS, map(row, results))


def setting(device: torch.device, clock: str, options: Sequence[str] = ()) -> dict[str, Any]:
    """The machine and clock of the measurement, with the machine's load, and the ``options`` of loading the model."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "device": device_in_words(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "clock": clock,
        "load": load,
        **({"options": " ".join(options)} if options else {}),
    }


def write_json(path: Path, results: Sequence[ArmResult], where: dict[str, Any]) -> None:
    """Writes the results as JSON."""
    rows = [asdict(result) for result in results]
    path.write_text(json.dumps({**where, "rows": rows}, indent=2) + "\n", encoding="utf-8")

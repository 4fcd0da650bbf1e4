"""Clocks and memory: seconds of the wall or of the processors, spent in which part, and the highest memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from addiffusion_lab.bench.bed import Bed

STAGES = ("denoise", "look", "decode")
"""Parts that are timed by themselves; what is left of a round is Python: programs, solver, policy, observations."""


class Clock:
    """Seconds so far.

    Args:
        kind: ``wall``, or ``cpu``: what the processors spent on this process and ``pids``, whoever else is busy. On a
            machine that is shared only the latter repeats; it does not tell how well two cores are used.
        device: waited for before each reading.
    """

    def __init__(self, kind: str, device: torch.device) -> None:
        self.kind, self.device = kind, device

    def __call__(self, pids: Sequence[int] = ()) -> float:
        """Seconds since some time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.kind == "wall":
            return time.perf_counter()
        return time.process_time() + sum(processor_seconds(pid) for pid in pids)


def processor_seconds(pid: int) -> float:
    """User and system time of another process (Linux)."""
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


class Stages:
    """Seconds of one round by part.

    Attributes:
        seconds: of each of :data:`STAGES`.
    """

    def __init__(self, bed: Bed, clock: Clock) -> None:
        self.bed, self.clock = bed, clock
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Within it the calls of denoiser, previewer, scorers and decoder are timed."""
        calls = [
            (self.bed.backbone, "predict", "denoise"),
            (self.bed.backbone, "preview", "look"),
            (self.bed.scorers, "look", "look"),
            (self.bed.backbone, "decode", "decode"),
        ]
        self.seconds = dict.fromkeys(STAGES, 0.0)
        for owner, name, stage in calls:
            setattr(owner, name, self._timing(getattr(owner, name), stage))
        try:
            yield
        finally:
            for owner, name, _ in calls:
                delattr(owner, name)  # the class's own shows again

    def _timing(self, call: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self.clock()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[stage] += self.clock() - began

        return timed


def reset_peak(device: torch.device) -> None:
    """Forgets the highest memory so far, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: VmHWM counts anew
    except OSError:
        return


def peak_mib(device: torch.device, pids: Sequence[int] = ()) -> float | None:
    """Highest memory since :func:`reset_peak`, with that of other processes: the GPU's, else resident; MiB.

    ``None`` where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        return sum(_high_water(f"/proc/{pid}/status") for pid in ("self", *pids))
    except OSError:
        return None


def _high_water(path: str) -> float:
    lines = Path(path).read_text(encoding="ascii").splitlines()
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)

"""Seconds and peak memory of a stretch of work, on the device where it runs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Usage:
    """What a stretch of work took.

    Attributes:
        seconds: wall-clock, with the device's pending work done.
        peak_bytes: most memory held at once; ``None`` where the system does not tell.
        memory: what that counts: ``"cuda"``: tensors on the device, models that were there before included; ``"rss"``:
            the whole process in host memory; ``"none"``.
    """

    seconds: float
    peak_bytes: int | None
    memory: str


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


class Meter:
    """Measures from its making, or its last :meth:`resample`, to each :meth:`read`.

    The peaks of the process and of the device are reset, so two meters of one device at a time disturb each other.

    Args:
        device: where the work runs; only ``cuda`` devices have a memory of their own here.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.clock = Clock("wall", self.device)
        self.restart()

    def restart(self) -> None:
        """Starts again: clock at 0, peak at what is held now."""
        self._memory = reset_peak(self.device)
        self._begun = self.clock()

    def read(self) -> Usage:
        """What was taken since the start."""
        seconds = self.clock() - self._begun
        peak = None if self._memory == "none" else peak_bytes(self.device)
        return Usage(seconds, peak, "none" if peak is None else self._memory)


def processor_seconds(pid: int) -> float:
    """User and system time of another process (Linux)."""
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def reset_peak(device: torch.device) -> str:
    """Sets the peak of a device, else of this process, to what is held now; what it counts, as in :class:`Usage`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return "cuda"
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: proc(5)
    except OSError:
        return "none"
    return "rss"


def peak_bytes(device: torch.device, pids: Sequence[int] = ()) -> int | None:
    """Most memory held since :func:`reset_peak`: the device's, else this process's and that of ``pids``.

    ``None`` where the system does not tell.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        return sum(_high_water(f"/proc/{pid}/status") for pid in ("self", *pids))
    except OSError:
        return None


def _high_water(path: str) -> int:
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)

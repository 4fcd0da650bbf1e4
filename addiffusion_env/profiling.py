"""Time and peak memory of a section of code, on the device where it runs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Usage:
    """Resources used by a section of code.

    Attributes:
        seconds: wall-clock time, including the device's pending work.
        peak_bytes: peak memory; ``None`` if the system does not report it.
        memory: what ``peak_bytes`` counts: ``"cuda"``: tensors on the device, including models loaded before;
            ``"rss"``: the whole process in host memory; ``"none"``.
    """

    seconds: float
    peak_bytes: int | None
    memory: str


class Clock:
    """A clock of wall-clock or CPU time.

    Args:
        kind: ``wall``, or ``cpu``: CPU time of this process and of ``pids``, which is reproducible on a shared machine
            but does not show how well several cores are used.
        device: device to synchronise with before each reading.
    """

    def __init__(self, kind: str, device: torch.device) -> None:
        self.kind, self.device = kind, device

    def __call__(self, pids: Sequence[int] = ()) -> float:
        """Seconds since an arbitrary start."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.kind == "wall":
            return time.perf_counter()
        return time.process_time() + sum(processor_seconds(pid) for pid in pids)


class Meter:
    """Measures from its construction, or the last :meth:`restart`, to each :meth:`read`.

    It resets the peak statistics of the process and the device, so use only one meter per device at a time.

    Args:
        device: device of the work; the memory of the device is measured for ``cuda`` only.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.clock = Clock("wall", self.device)
        self.restart()

    def restart(self) -> None:
        """Sets the clock to 0 and the peak to the memory in use."""
        self._memory = reset_peak(self.device)
        self._start = self.clock()

    def read(self) -> Usage:
        """The resources used since the start."""
        seconds = self.clock() - self._start
        peak = None if self._memory == "none" else peak_bytes(self.device)
        return Usage(seconds, peak, "none" if peak is None else self._memory)


def processor_seconds(pid: int) -> float:
    """User and system time of another process (Linux)."""
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def reset_peak(device: torch.device) -> str:
    """Resets the peak of a CUDA device, else of this process; returns what it counts, as in :class:`Usage`."""
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
    """Peak memory since :func:`reset_peak` of a CUDA device, else of this process and ``pids`` together.

    ``None`` if the system does not report it.
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

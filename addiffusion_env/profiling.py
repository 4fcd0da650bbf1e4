"""Seconds and peak memory of a stretch of work, on the device where it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

PROCESS = Path("/proc/self")


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


class Meter:
    """Measures from its making, or its last :meth:`restart`, to each :meth:`read`.

    The peaks of the process and of the device are reset, so two meters of one device at a time disturb each other.

    Args:
        device: where the work runs; only ``cuda`` devices have a memory of their own here.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.restart()

    def restart(self) -> None:
        """Starts again: clock at 0, peak at what is held now."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._memory = "cuda"
        else:
            self._memory = "rss" if _reset_peak_rss() else "none"
        self._begun = time.perf_counter()

    def read(self) -> Usage:
        """What was taken since the start."""
        if self._memory == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self._begun
        if self._memory == "cuda":
            return Usage(seconds, int(torch.cuda.max_memory_allocated(self.device)), "cuda")
        peak = _peak_rss() if self._memory == "rss" else None
        return Usage(seconds, peak, "rss" if peak is not None else "none")


def _reset_peak_rss() -> bool:
    """Sets the process's peak to what it holds now (Linux: proc(5), clear_refs); whether that worked."""
    try:
        (PROCESS / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak_rss() -> int | None:
    try:
        lines = (PROCESS / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)

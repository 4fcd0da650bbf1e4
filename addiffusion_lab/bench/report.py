"""The table and the JSON of a measurement."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from addiffusion_env.pages import markdown_table
from addiffusion_lab.bench.measure import ArmResult, device_in_words
from addiffusion_lab.bench.meter import STAGES

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


def setting(device: torch.device, clock: str) -> dict[str, Any]:
    """The machine and clock of the measurement, with the machine's load."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "device": device_in_words(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "clock": clock,
        "load": load,
    }


def write_json(path: Path, results: Sequence[ArmResult], where: dict[str, Any]) -> None:
    """Writes the results as JSON."""
    rows = [asdict(result) for result in results]
    path.write_text(json.dumps({**where, "rows": rows}, indent=2) + "\n", encoding="utf-8")

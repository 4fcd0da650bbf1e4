"""Speed, always as a ratio against something run side by side in the same minute.

The bare denoiser loop (one guided network call after another at the same batch and precision, no looks, no Python
around it) is the limit; the vector environment, which looks and scores at every step, is held against it. The two are
interleaved round by round, so that a busy machine slows both.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from addiffusion_env.envs.episodes import Episodes
from addiffusion_env.envs.settings import EnvSettings


@dataclass(frozen=True)
class BenchResult:
    """Lane-steps a second of the environment beside the bare denoiser.

    Attributes:
        backbone: which model.
        device: where, in words.
        threads: torch's threads.
        lanes: batch size of both.
        bare: guided evaluations a second of the bare loop, median over rounds.
        env: decisions a second of the vector environment with a look at every step, median over rounds.
        ratio: median over rounds of env / bare.
        rounds: how many interleaved rounds.
    """

    backbone: str
    device: str
    threads: int
    lanes: int
    bare: float
    env: float
    ratio: float
    rounds: int


def bench(backbone: str = "emoji", lanes: int = 16, rounds: int = 5, steps: int = 8) -> BenchResult:
    """Measures one backbone at one number of lanes.

    Each round times one sweep of the bare loop and one step of the environment: one guided evaluation a lane each.
    """
    episodes = Episodes(EnvSettings(backbone=backbone, steps=steps, refine="off"), lanes)
    model, process = episodes.backbone, episodes.process
    for index in range(lanes):
        episodes.begin(index, index)
    latents = torch.cat([slot.lane.latents.x for slot in episodes.slots if slot is not None])
    conditioning = model.encode([slot.lane.prompt.text for slot in episodes.slots if slot is not None])
    sigma = torch.from_numpy(np.resize(model.sigmas(steps, process.spacing)[:-1], lanes).copy())
    scale = torch.full((lanes,), process.guidance_scale, dtype=torch.float64)
    bare_times, env_times = [], []
    for turn in range(rounds + 1):  # the first round warms up
        if turn and turn % (steps - 1) == 0:
            for index in range(lanes):
                episodes.begin(index)
        bare_times.append(_timed(lambda: model.predict(latents, sigma, conditioning, scale)))
        env_times.append(_timed(lambda: episodes.step([0] * lanes)))
    bare_times, env_times = bare_times[1:], env_times[1:]
    ratio = statistics.median(b / e for b, e in zip(bare_times, env_times, strict=True))
    return BenchResult(
        backbone=backbone,
        device=f"{model.device} ({platform.processor() or platform.machine()})",
        threads=torch.get_num_threads(),
        lanes=lanes,
        bare=lanes / statistics.median(bare_times),
        env=lanes / statistics.median(env_times),
        ratio=ratio,
        rounds=rounds,
    )


def _timed(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def report(results: list[BenchResult], path: Path | None) -> None:
    """Prints a table and, when asked, writes JSON."""
    from rich.console import Console
    from rich.table import Table

    heads = ("backbone", "device", "threads", "lanes", "bare /s", "env /s", "env : bare")
    table = Table(*heads, title="lane-steps a second: bare denoiser loop, vector env with looks at every step")
    for row in results:
        shown = (row.backbone, row.device, str(row.threads), str(row.lanes), f"{row.bare:.1f}", f"{row.env:.1f}")
        table.add_row(*shown, f"{100 * row.ratio:.0f} %")
    Console(width=110).print(table)
    if path is not None:
        path.write_text(json.dumps([asdict(row) for row in results], indent=2), encoding="utf-8")

"""What Ray costs on one machine: a few workers beside one environment in this process, on the same cores.

    python benchmarks/ray_overhead.py                          two workers with one thread each, 16 lanes in all
    python benchmarks/ray_overhead.py --lanes 8 --workers 4 --rounds 9 --json runs/ray_overhead.json

Both play the same episodes with looks at every step: the environment in this process with all threads, then the workers
with the threads shared among them, in turns, so that a busy machine slows both. There is nothing to gain on one
machine; the ratio bounds what is lost to messages and to waiting for the slower worker.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from addiffusion_env.distributed.actor_pool import RayConfig
from addiffusion_env.distributed.ray_vec_env import RayVecEnv
from addiffusion_env.envs.sb3_env import AdDiffusionVecEnv


@dataclass(frozen=True)
class Overhead:
    """Decisions a second with and without Ray.

    Attributes:
        machine: where, in words.
        workers: Ray actors.
        threads: torch's threads of the environment in this process; the workers share as many.
        lanes: in all.
        steps: decisions of a lane a round.
        rounds: how many, each timing both.
        local: decisions a second in this process, median over rounds.
        ray: the same with workers.
        ratio: median over rounds of ray / local.
        lowest: of the rounds' ratios.
        highest: of the rounds' ratios.
    """

    machine: str
    workers: int
    threads: int
    lanes: int
    steps: int
    rounds: int
    local: float
    ray: float
    ratio: float
    lowest: float
    highest: float


def measure(lanes: int, workers: int, rounds: int, steps: int) -> Overhead:
    """Times both in turns; the first round warms up and is not counted."""
    settings = {"steps": steps, "refine": "off"}
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    here = AdDiffusionVecEnv(lanes, 0, **settings)
    there = RayVecEnv(lanes, 0, RayConfig(workers=workers), **settings)
    assert there.pool.resources.threads * workers <= max(threads, workers)
    here.reset()
    there.reset()
    ratios, times = [], {"local": [], "ray": []}
    for env_step in range(rounds + 1):
        both: list[tuple[str, Any]] = [("local", here), ("ray", there)]
        taken = {name: timed(lambda env=env: play(env, steps)) for name, env in both[:: 1 if env_step % 2 else -1]}
        if env_step:
            ratios.append(taken["local"] / taken["ray"])
            for name, seconds in taken.items():
                times[name].append(seconds)
    there.close()
    return Overhead(
        machine=f"{platform.processor() or platform.machine()}, {threads} cores",
        workers=workers,
        threads=threads,
        lanes=lanes,
        steps=steps,
        rounds=rounds,
        local=lanes * steps / statistics.median(times["local"]),
        ray=lanes * steps / statistics.median(times["ray"]),
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
    )


def play(env: Any, steps: int) -> None:
    """One episode in every lane: always continue."""
    actions = np.zeros(env.num_envs, dtype=np.int64)
    for _ in range(steps):
        env.step(actions)


def timed(work: Callable[[], None]) -> float:
    """Seconds that something takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    chosen = parser.parse_args()
    found = measure(chosen.lanes, chosen.workers, chosen.rounds, chosen.steps)
    print(
        f"{found.lanes} lanes on {found.machine}: {found.local:.1f} decisions a second in one process with "
        f"{found.threads} threads, {found.ray:.1f} with {found.workers} Ray workers\n"
        f"Ray : one process = {found.ratio:.1%}, median of {found.rounds} rounds "
        f"({found.lowest:.1%} to {found.highest:.1%})"
    )
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(asdict(found), indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()

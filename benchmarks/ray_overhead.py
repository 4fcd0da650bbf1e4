"""Overhead of Ray on one machine: a few workers compared with one environment in this process, on the same cores.

    python benchmarks/ray_overhead.py                          two workers with one thread each, 16 lanes in all
    python benchmarks/ray_overhead.py --lanes 8 --workers 4 --rounds 9 --json runs/ray_overhead.json

Both play the same episodes with previews at every step: the environment in this process with all threads, and the
workers with the threads shared among them, alternately, so that load on the machine slows both. No speed-up is possible
on one machine; the ratio bounds the loss from messages and from waiting for the slower worker.
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
    """Decisions per second with and without Ray.

    Attributes:
        machine: description of the machine.
        workers: number of Ray actors.
        threads: number of torch threads of the environment in this process, and of all workers together.
        lanes: total number of lanes.
        steps: decisions per lane and round.
        rounds: number of rounds, each timing both.
        local: decisions per second in this process, median over rounds.
        ray: decisions per second with workers, median over rounds.
        ratio: median over rounds of ray / local.
        lowest: lowest ratio of a round.
        highest: highest ratio of a round.
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
    """Times both alternately; the first round is a warm-up and is not counted."""
    settings = {"steps": steps, "refine": "off"}
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    here = AdDiffusionVecEnv(lanes, 0, **settings)
    there = RayVecEnv(lanes, 0, RayConfig(workers=workers), **settings)
    assert there.pool.config.threads * workers <= max(threads, workers)
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
    """Plays one episode in every lane, always continuing."""
    actions = np.zeros(env.num_envs, dtype=np.int64)
    for _ in range(steps):
        env.step(actions)


def timed(work: Callable[[], None]) -> float:
    """Seconds that a call takes."""
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
        f"{found.lanes} lanes on {found.machine}: {found.local:.1f} decisions per second in one process with "
        f"{found.threads} threads, {found.ray:.1f} with {found.workers} Ray workers\n"
        f"Ray : one process = {found.ratio:.1%}, median of {found.rounds} rounds "
        f"({found.lowest:.1%} to {found.highest:.1%})"
    )
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(asdict(found), indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()

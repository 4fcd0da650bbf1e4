"""Soak test of the vector env with many short episodes: memory must not grow, no lane or prompt may be lost.

python benchmarks/soak.py --episodes 10000

Each episode stops at its first decision, with a direct jump to x0 (``early_exit_steps=0``): the shortest possible
episode that runs every component (prompt, noise, denoiser, decoder, scorers, reward, reset) once. Exits with status 1
when a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SETTINGS = {"steps": 2, "early_exit_steps": 0, "guidance_scale": 1.0, "refine": "off"}


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(episodes: int, lanes: int, seed: int, warm_up: float) -> dict[str, float | int]:
    """Plays ``episodes`` (a multiple of ``lanes``) and returns the counts.

    Args:
        episodes: total number of episodes.
        lanes: number of parallel lanes.
        seed: seed of the first lane.
        warm_up: share of the episodes after which memory must not grow.
    """
    from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv

    begun = time.perf_counter()
    env = AdDiffusionVectorEnv(lanes, **SETTINGS)
    env.reset(seed=seed)
    ended, wrong = Counter(), 0
    memory: list[tuple[int, float]] = []
    rounds = episodes // lanes
    for number in range(rounds):
        _, _, terminated, truncated, infos = env.step(np.full(lanes, 1))
        for lane in np.flatnonzero(terminated | truncated):
            expected = np.random.default_rng([seed + int(lane), ended[int(lane)]])
            prompt = env.episodes.source.sample(expected)
            image_seed = int(expected.integers(2**31))
            last = infos["final_info"]
            wrong += (last["prompt_id"][lane], int(last["seed"][lane])) != (prompt.prompt_id, image_seed)
            wrong += not (terminated[lane] and last["image"][lane].shape == (64, 64, 3))
            ended[int(lane)] += 1
        if number % max(1, rounds // 20) == 0 or number == rounds - 1:
            memory.append(((number + 1) * lanes, resident()))
            print(f"{memory[-1][0]:6d} episodes, {memory[-1][1]:.1f} MiB", flush=True)
    after = [used for done, used in memory if done >= warm_up * episodes]
    half = len(after) // 2
    return {
        "episodes": sum(ended.values()),
        "lanes": lanes,
        "fewest_in_a_lane": min(ended.values(), default=0) if len(ended) == lanes else 0,
        "most_in_a_lane": max(ended.values(), default=0),
        "prompts_wrong_or_missing": wrong,
        "resident_after_warm_up_mib": round(after[0], 1),
        "resident_at_end_mib": round(after[-1], 1),
        # Means of the two halves after the warm-up: single readings vary with the allocator.
        "growth_mib": round(float(np.mean(after[half:]) - np.mean(after[:half])), 2) if half else 0.0,
        "seconds": round(time.perf_counter() - begun),
    }


def main() -> int:
    """Reads the command line, prints one JSON line, returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--lanes", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warm-up", type=float, default=0.3, help="share of the episodes")
    parser.add_argument("--growth", type=float, default=16.0, help="allowed growth after the warm-up in MiB")
    asked = parser.parse_args()
    episodes = asked.episodes - asked.episodes % asked.lanes
    found = soak(episodes, asked.lanes, asked.seed, asked.warm_up)
    print(json.dumps(found))
    whole = found["fewest_in_a_lane"] == found["most_in_a_lane"] == episodes // asked.lanes
    return 0 if whole and found["prompts_wrong_or_missing"] == 0 and found["growth_mib"] <= asked.growth else 1


if __name__ == "__main__":
    sys.exit(main())

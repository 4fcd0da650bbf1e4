"""Python overhead per lane-step, with networks that return immediately.

    python benchmarks/python_overhead.py                        the emoji world, 1, 16, 64 and 256 lanes
    python benchmarks/python_overhead.py --lanes 64 --steps 8 --rounds 5 --json runs/python_overhead.json

The first rows are one guided ``predict`` and one step of a solver of lanes at different steps, as in a queue; one that
ends is replaced by a new image, whose cost (text encoder, noise, a pipeline's call up to its loop) is a column.
The other rows are whole arms of ``python -m addiffusion_env bench --instant``, new prompts in every round: beginning,
previews, scores, decisions, decoding and the images' formats included. Times are processor times, which are
reproducible on a shared machine, up to its load.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.batches import Conditioning, Latents
from addiffusion_env.backbones.emoji import WEIGHTS, EmojiBackbone
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.backbones.solvers import SCHEDULER, ddim_step
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts
from addiffusion_env.scorers.emoji import emoji_scorers
from addiffusion_lab.bench.arms import pipeline_of
from addiffusion_lab.bench.instant import make_instant
from addiffusion_lab.bench.measure import measure as measure_arms
from addiffusion_lab.bench.setup import make_setup

ARMS = ("bare", "vector", "continue", "any_pipeline")
SAMPLERS = ("continue", "policy:emoji")
"""Arms of the benchmark and samplers that run through the pipeline, besides fixed steps."""


class Lanes:
    """Images of one backbone at different steps of one schedule.

    Args:
        backbone: the backbone that evaluates them.
        count: number of lanes.
        steps: steps of the schedule.
        own: whether they step with the pipeline's own scheduler instead of DDIM.

    Attributes:
        began: seconds spent starting images: text encoder, noise, a pipeline's call up to its loop.
        images: number of images started so far.
    """

    def __init__(self, backbone: Backbone, count: int, steps: int, own: bool) -> None:
        self.backbone, self.steps, self.own = backbone, steps, own
        self.prompts = EmojiPrompts(split="test").take(count, seed=0)
        self.began, self.images = 0.0, 0
        self.lanes: list[tuple[Conditioning, Latents, np.ndarray]] = []
        for tick in range(steps):  # some lanes start at each tick
            self.lanes += [self.begin() for at in range(count) if at % steps == tick]
            if tick < steps - 1:
                self.tick()

    def begin(self) -> tuple[Conditioning, Latents, np.ndarray]:
        """The initial state of a lane: conditioning, latents and noise levels."""
        prompt = self.prompts[self.images % len(self.prompts)]
        start = time.process_time()
        spacing = self.backbone.capabilities.default_spacing
        conditioning, latents, [levels] = self.backbone.begin([(prompt, self.images)], self.steps, spacing)
        self.began += time.process_time() - start
        self.images += 1
        return conditioning, latents, levels

    def tick(self) -> float:
        """Takes one lane-step of every lane and replaces finished ones; returns the seconds of the lane-steps."""
        if not self.lanes:
            return 0.0
        conditioning = Conditioning.cat([lane[0] for lane in self.lanes])
        latents = Latents.cat([lane[1] for lane in self.lanes])
        after = torch.tensor([lane[2][1] for lane in self.lanes], dtype=torch.float64)
        scale = torch.full((len(latents),), self.backbone.capabilities.default_guidance, dtype=torch.float64)
        start = time.process_time()
        made = self.backbone.predict(latents.x, latents.sigma, conditioning, scale)
        if self.own:
            stepped = self.backbone.scheduler_step(latents, made, conditioning, after)
        else:
            stepped = ddim_step(self.backbone.path, latents, made.x0, after)
        seconds = time.process_time() - start
        moved = [(lane[0], stepped.row(at), lane[2][1:]) for at, lane in enumerate(self.lanes)]
        self.lanes = [lane if len(lane[2]) > 1 else self.begin() for lane in moved]
        return seconds


def instant() -> EmojiBackbone:
    """A copy of the emoji world's backbone with instant networks."""
    backbone = EmojiBackbone.from_pretrained()
    make_instant(backbone, emoji_scorers(WEIGHTS))
    return backbone


def measure(lanes: Lanes, rounds: int) -> tuple[float, float]:
    """(microseconds per lane-step, milliseconds per image start): medians over rounds of one schedule each."""
    for _ in range(3 * lanes.steps):
        lanes.tick()
    lanes.began = lanes.images = 0
    found = [sum(lanes.tick() for _ in range(lanes.steps)) for _ in range(rounds)]
    per_step = statistics.median(found) / (lanes.steps * len(lanes.lanes))
    return 1e6 * per_step, 1e3 * lanes.began / lanes.images


def main() -> None:
    """Measures each implementation at each number of lanes and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scheduler", help="class of the pipeline's scheduler; default: the emoji world's")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)

    def general() -> Backbone:
        import diffusers

        pipe = pipeline_of(instant())
        if chosen.scheduler:
            pipe.scheduler = getattr(diffusers, chosen.scheduler).from_config(pipe.scheduler.config)
        return PipelineBackbone(pipe, preview="none")

    ways: dict[str, tuple[Callable[[], Backbone], bool]] = {
        "predict and step: hand-written loop, ddim": (instant, False),
        "predict and step: pipeline, ddim": (general, False),
        f"predict and step: pipeline, solver={SCHEDULER}": (general, True),
    }
    rows: dict[str, list[tuple[float, float | None]]] = {}
    for name, (make, own) in ways.items():
        backbone = make()
        rows[name] = [measure(Lanes(backbone, count, chosen.steps, own), chosen.rounds) for count in chosen.lanes]
    setup = make_setup("emoji", 1, chosen.steps, 1, None)
    make_instant(setup.backbone, setup.scorers)
    for count in chosen.lanes:
        sized = replace(setup, lanes=count, images=2 * count)
        for arm in measure_arms(sized, ARMS, [f"fixed:{chosen.steps}", *SAMPLERS], chosen.rounds, "cpu"):
            rows.setdefault(arm.arm, []).append((1000 * arm.ms, None))
    print("| microseconds per lane-step |" + "".join(f" {count} lanes |" for count in chosen.lanes) + " begin, ms |")
    print("| --- |" + " --- |" * (len(chosen.lanes) + 1))
    for name, figures in rows.items():
        begin = "" if figures[-1][1] is None else f"{figures[-1][1]:.2f}"
        print(f"| {name} |" + "".join(f" {step:.0f} |" for step, _ in figures) + f" {begin} |")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps({"lanes": chosen.lanes, "steps": chosen.steps, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()

"""The vector environment and its engine beside the plain diffusers pipeline: time and memory, random weights.

    python benchmarks/backbones.py                 # full size: needs a GPU
    python benchmarks/backbones.py --size tiny     # 16x16 pictures: runs anywhere in two minutes

Prints a table and, with ``--json FILE``, writes the same numbers with the device, versions and settings.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from full_size import FULL, build

from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.devices import resolve_device, resolve_dtype
from addiffusion_env.backbones.emoji.weights import WEIGHTS
from addiffusion_env.backbones.flux import packed
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import Lane, open_lane
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.engine.programs import advance, seen
from addiffusion_env.envs import episodes
from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv
from addiffusion_env.errors import DeviceMemoryError
from addiffusion_env.prompts.base import Prompt
from addiffusion_env.scorers.look import LookScorers, emoji_scorers

WARM_UP = 1
PROMPT = "a photo of a red cup"
OPTIONS = {("flux", "tiny"): {"image_size": 16}}


@dataclass(frozen=True)
class Cost:
    """What a step of one lane costs.

    Attributes:
        ms: milliseconds.
        gib: highest device memory meanwhile, weights included; ``None`` on a CPU, where torch counts none.
    """

    ms: float
    gib: float | None


@dataclass(frozen=True)
class Row:
    """The costs at one number of lanes; ``None`` for what ran out of memory.

    Attributes:
        backbone: its name.
        dtype: precision of the weights.
        lanes: pictures at once.
        pipeline: of the diffusers pipeline.
        engine: of the engine, evaluations only.
        looks: of the engine with a preview and its scores after each step (the emoji world's small scorers).
        env: of ``AdDiffusionVectorEnv.step``: evaluation, look, reward and observation.
    """

    backbone: str
    dtype: str
    lanes: int
    pipeline: Cost | None
    engine: Cost | None
    looks: Cost | None
    env: Cost | None


@dataclass(frozen=True)
class Stopwatch:
    """Measures work of ``steps`` steps of many lanes.

    Attributes:
        device: where it runs.
        steps: steps of each lane in one call.
        repeats: timed calls, of which the fastest counts.
    """

    device: torch.device
    steps: int
    repeats: int

    def cost(self, work: Callable[[], Any], lanes: int, prepare: Callable[[], Any] = lambda: None) -> Cost | None:
        """The cost of one lane-step of ``work``, ``prepare`` not timed; ``None`` when the GPU's memory runs out."""
        best, cuda = float("inf"), self.device.type == "cuda"
        if cuda:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            for turn in range(WARM_UP + self.repeats):
                prepare()
                if cuda:
                    torch.cuda.synchronize(self.device)
                began = time.perf_counter()
                work()
                if cuda:
                    torch.cuda.synchronize(self.device)
                if turn >= WARM_UP:
                    best = min(best, time.perf_counter() - began)
        except (torch.cuda.OutOfMemoryError, DeviceMemoryError):
            return None
        peak = torch.cuda.max_memory_allocated(self.device) / 2**30 if cuda else None
        return Cost(1000 * best / (lanes * self.steps), peak)


def lane_steps(process: ProcessConfig, lane: Lane, looks: bool) -> Generator[Any, Any, Lane]:
    """All steps of a lane, with a look after each when asked for."""
    while lane.remaining:
        lane = yield from advance(process, lane)
        if looks:
            lane = yield from seen(lane)
    return lane


def run_engine(backbone: Backbone, scorers: LookScorers, process: ProcessConfig, lanes: int, looks: bool) -> None:
    """Takes every lane through the schedule, in step."""
    engine = Engine(backbone, scorers, solver=process.solver)
    opened = [open_lane(backbone, process, Prompt.of(PROMPT), seed) for seed in range(lanes)]
    engine.run([lane_steps(process, lane, looks) for lane in opened])


def run_pipeline(pipe: Any, backbone: Backbone, process: ProcessConfig, lanes: int, text: dict[str, Any]) -> None:
    """The same with diffusers' own loop, all pictures in one batch, their text encoded before."""
    capabilities = backbone.capabilities
    noise = torch.randn(lanes, *capabilities.latent_shape, device=backbone.device, dtype=pipe.dtype)
    side = capabilities.image_size[0]
    settings = {"num_inference_steps": process.steps, "output_type": "latent", "height": side, "width": side}
    if backbone.name == "flux":
        settings |= {"latents": packed(noise), "max_sequence_length": capabilities.max_tokens}
    else:
        settings |= {"latents": noise, "guidance_scale": process.guidance_scale}
    pipe(**{name: value.expand(lanes, *value.shape[1:]) for name, value in text.items()}, **settings)


def encoded(backbone: Backbone) -> dict[str, Any]:
    """The prompt as the pipeline takes it when it is encoded already; the engine remembers texts, too."""
    names = {"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
    names |= {f"negative_{name}": f"negative_{argument}" for name, argument in names.items()}
    tensors = backbone.encode([PROMPT]).tensors
    return {names[name]: value for name, value in tensors.items() if name in names}


def vector_env(backbone: Backbone, scorers: LookScorers, process: ProcessConfig, lanes: int) -> AdDiffusionVectorEnv:
    """The vector environment with the emoji world's scorers: those of real pictures would have to be downloaded."""
    with mock.patch.object(episodes, "load_scorers", return_value=scorers):
        # One step more than is timed, so that no timed step ends an episode.
        return AdDiffusionVectorEnv(lanes, backbone=backbone, prompts=[PROMPT], steps=process.steps + 1)


def run_env(env: AdDiffusionVectorEnv, steps: int) -> None:
    """Continues every lane ``steps`` times."""
    for _ in range(steps):
        env.step(np.zeros(env.num_envs, dtype=int))


def measure(name: str, options: argparse.Namespace, device: torch.device) -> list[Row]:
    """All rows of one backbone."""
    dtype = resolve_dtype(options.dtype, device, BACKBONES.load(name).spec.auto_dtype)
    pipe, preview = build(name, options.size, device, dtype)
    extra = OPTIONS.get((name, options.size), {})
    backbone = BACKBONES.load(name).from_pipeline(pipe, preview=preview, compile=options.compile, **extra)
    scorers = emoji_scorers(WEIGHTS, device)
    capabilities = backbone.capabilities
    process = ProcessConfig(
        steps=options.steps,
        spacing=capabilities.default_spacing,
        solver=capabilities.default_solver,
        guidance_scale=capabilities.default_guidance,
    )
    rows, text = [], encoded(backbone)
    watch = Stopwatch(device, options.steps, options.repeats)
    for lanes in options.lanes:
        env = vector_env(backbone, scorers, process, lanes)
        rows.append(
            Row(
                backbone=name,
                dtype=str(dtype).removeprefix("torch."),
                lanes=lanes,
                pipeline=watch.cost(lambda n=lanes: run_pipeline(pipe, backbone, process, n, text), lanes),
                engine=watch.cost(lambda n=lanes: run_engine(backbone, scorers, process, n, False), lanes),
                looks=watch.cost(lambda n=lanes: run_engine(backbone, scorers, process, n, True), lanes),
                env=watch.cost(lambda e=env: run_env(e, options.steps), lanes, lambda e=env: e.reset(seed=0)),
            )
        )
        print(line(rows[-1]), flush=True)
    return rows


COLUMNS = ("pipeline", "engine", "looks", "env")
HEAD = "| backbone | dtype | lanes | " + " | ".join(f"{name} ms | GiB" for name in COLUMNS) + " |"
RULE = "| --- " * (3 + 2 * len(COLUMNS)) + "|"


def line(row: Row) -> str:
    """One row of the table, in Markdown."""
    cells = [row.backbone, row.dtype, str(row.lanes)]
    for name in COLUMNS:
        cost: Cost | None = getattr(row, name)
        cells.append("no memory" if cost is None else f"{cost.ms:.1f}")
        cells.append("-" if cost is None or cost.gib is None else f"{cost.gib:.1f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["sd15", "sdxl", "flux"], choices=sorted(FULL))
    parser.add_argument("--size", default="full", choices=["full", "tiny"])
    parser.add_argument("--lanes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=4, help="steps of the schedule that is timed")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compile", action="store_true", help="torch.compile the denoiser of the engine's side")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    device = resolve_device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    print(
        f"{where}, torch {torch.__version__}, {options.size} size, {options.steps} steps, a lane-step\n{HEAD}\n{RULE}"
    )
    rows = []
    for name in options.backbones:
        rows += measure(name, options, device)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        found = {"device": where, "torch": torch.__version__, "settings": settings}
        options.json.write_text(json.dumps({**found, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()

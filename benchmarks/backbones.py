"""The engine of lanes beside the plain diffusers pipeline: milliseconds a lane-step and memory, random weights.

    python benchmarks/backbones.py                 # full size: needs a GPU
    python benchmarks/backbones.py --size tiny     # 16x16 pictures: runs anywhere in a minute

Prints a table and, with ``--json FILE``, writes the same numbers with the device, versions and settings.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from full_size import build

from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.devices import resolve_device, resolve_dtype
from addiffusion_env.backbones.emoji.weights import WEIGHTS
from addiffusion_env.backbones.flux import packed
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import Lane, open_lane
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.engine.programs import advance, seen
from addiffusion_env.prompts.base import Prompt
from addiffusion_env.scorers.look import LookScorers, emoji_scorers

WARM_UP = 1
PROMPT = "a photo of a red cup"
OPTIONS = {("flux", "tiny"): {"image_size": 16}}


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        backbone: its name.
        lanes: pictures at once.
        pipeline_ms: of the diffusers pipeline, a step of one picture; ``None`` when it ran out of memory.
        engine_ms: of the engine, a step of one lane.
        look_ms: of a preview and its scores, a lane (the emoji world's small scorers: the decoder's share).
        memory_gib: highest device memory of the engine's run; on a CPU the process's peak.
    """

    backbone: str
    lanes: int
    pipeline_ms: float | None
    engine_ms: float | None
    look_ms: float | None
    memory_gib: float


def timed(work: Callable[[], Any], device: torch.device, repeats: int) -> float | None:
    """Seconds of one call, the fastest of ``repeats`` after a warm-up; ``None`` when the GPU's memory runs out."""
    best = float("inf")
    try:
        for turn in range(WARM_UP + repeats):
            began = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= WARM_UP:
                best = min(best, time.perf_counter() - began)
    except torch.cuda.OutOfMemoryError:
        gc.collect()
        torch.cuda.empty_cache()
        return None
    return best


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


def peak_gib(device: torch.device) -> float:
    """Highest memory so far, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(name: str, options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[Row]:
    """All rows of one backbone."""
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
    for lanes in options.lanes:
        per_step = 1000 / (lanes * options.steps)
        plain = timed(lambda n=lanes: run_pipeline(pipe, backbone, process, n, text), device, options.repeats)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        engine = timed(lambda n=lanes: run_engine(backbone, scorers, process, n, False), device, options.repeats)
        looked = timed(lambda n=lanes: run_engine(backbone, scorers, process, n, True), device, options.repeats)
        rows.append(
            Row(
                backbone=name,
                lanes=lanes,
                pipeline_ms=None if plain is None else plain * per_step,
                engine_ms=None if engine is None else engine * per_step,
                look_ms=None if engine is None or looked is None else max(0.0, looked - engine) * per_step,
                memory_gib=peak_gib(device),
            )
        )
        print(line(rows[-1]), flush=True)
    return rows


HEAD = f"{'backbone':<10}{'lanes':>6}{'pipeline':>11}{'engine':>9}{'look':>8}{'GiB':>7}   ms a lane-step"


def line(row: Row) -> str:
    """One row of the table."""

    def cell(value: float | None, width: int) -> str:
        return f"{'no memory' if value is None else format(value, '.2f'):>{width}}"

    times = cell(row.pipeline_ms, 11) + cell(row.engine_ms, 9) + cell(row.look_ms, 8)
    return f"{row.backbone:<10}{row.lanes:>6}{times}{row.memory_gib:>7.1f}"


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["sd15", "sdxl", "flux"], choices=["sd15", "sdxl", "flux"])
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
    dtype = resolve_dtype(options.dtype, device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"{where}, {str(dtype)[6:]}, torch {torch.__version__}, {options.size} size, {options.steps} steps\n{HEAD}")
    rows = []
    for name in options.backbones:
        rows += measure(name, options, device, dtype)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        found = {"device": where, "dtype": str(dtype), "torch": torch.__version__, "settings": settings}
        options.json.write_text(json.dumps({**found, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()

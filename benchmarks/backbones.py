"""``python -m addiffusion_env bench`` on full-size models with random weights: no download.

    python benchmarks/backbones.py                 # full size: needs a GPU
    python benchmarks/backbones.py --size tiny     # 16x16 images: runs anywhere
    python benchmarks/backbones.py --backbones sd35 z_image --dtype bfloat16 --lanes 1 8 --arms pipeline any_pipeline

Previews are scored by the emoji world's three small models, since scorers for real images would have to be downloaded.
"""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parent))
from full_size import FULL, build

from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.devices import resolve_device, resolve_dtype
from addiffusion_env.backbones.emoji import WEIGHTS
from addiffusion_env.envs import episodes
from addiffusion_env.scorers.emoji import emoji_scorers
from addiffusion_lab.bench.arguments import add_arguments
from addiffusion_lab.bench.cli import run_setup
from addiffusion_lab.bench.setup import BenchmarkSetup

TRANSFORMERS = ("flux", "sd35", "z_image")
TINY: dict[str, dict[str, Any]] = {name: {"image_size": 16} for name in TRANSFORMERS}


def make_setup(name: str, chosen: argparse.Namespace, device: torch.device) -> BenchmarkSetup:
    """The benchmark setup of a backbone with random weights."""
    dtype = resolve_dtype(chosen.dtype, device, BACKBONES.load(name).spec.auto_dtype)
    pipe, preview = build(name, chosen.size, device, dtype)
    fast = {"compile": chosen.compile, "batch_buckets": chosen.batch_buckets}
    if name not in TRANSFORMERS:
        fast["channels_last"] = chosen.channels_last
    options = {**fast, **(TINY.get(name, {}) if chosen.size == "tiny" else {})}
    backbone = BACKBONES.load(name).from_pipeline(pipe, preview=preview, **options)
    lanes = chosen.lanes[0]
    steps = chosen.steps or min(8, backbone.capabilities.default_steps)
    return BenchmarkSetup(backbone, emoji_scorers(WEIGHTS, device), lanes, steps, chosen.preview_every, 2 * lanes)


def main() -> None:
    """Measures the backbones of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["sd15", "sdxl", "flux"], choices=sorted(FULL))
    parser.add_argument("--size", default="full", choices=["full", "tiny"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compile", default=False, nargs="?", const=True, help="or a mode of torch.compile")
    parser.add_argument("--batch-buckets", type=int, nargs="+", default=None)
    parser.add_argument("--channels-last", action="store_true")
    add_arguments(parser)
    chosen = parser.parse_args()
    device = resolve_device(chosen.device)
    path: Path | None = chosen.json
    for name in chosen.backbones:
        setup = make_setup(name, chosen, device)
        chosen.json = None if path is None else path.with_name(f"{path.stem}-{name}{path.suffix}")
        with mock.patch.object(episodes, "load_scorers", return_value=setup.scorers):
            run_setup(setup, chosen, chosen.samplers or ())
        del setup
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

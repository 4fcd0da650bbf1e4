"""``python -m addiffusion_lab.emoji_training STAGE --out FOLDER``: runs one stage, or all of them in order."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from addiffusion_env.backbones.emoji import write_manifest
from addiffusion_env.errors import AdDiffusionError
from addiffusion_lab.emoji_training import STAGES
from addiffusion_lab.emoji_training.config import TrainReport, stage_config


def run_stage(stage: str, out: Path, **overrides: object) -> TrainReport:
    """Runs one stage with its defaults and ``overrides``, and updates the manifest of ``out``, so that it loads."""
    config = stage_config(stage, out, **overrides)
    out.mkdir(parents=True, exist_ok=True)
    report = STAGES.load(stage)(config)
    write_manifest(out)
    return report


def build_parser() -> argparse.ArgumentParser:
    """The command line; omitted options take the stage's default (``config.STAGE_DEFAULTS``)."""
    parser = argparse.ArgumentParser(
        prog="python -m addiffusion_lab.emoji_training", description="Trains the emoji world's models."
    )
    parser.add_argument("stage", help=f"{', '.join(STAGES)}; or all")
    parser.add_argument("--out", type=Path, required=True, help="folder of weights to read from and write to")
    parser.add_argument("--seconds", type=float, help="time budget in seconds")
    parser.add_argument("--steps", type=int, help="number of optimiser steps, instead of --seconds")
    parser.add_argument("--batch", type=int, help="images per step")
    parser.add_argument("--scenes", type=int, help="scenes drawn before training")
    parser.add_argument("--lr", type=float, help="peak learning rate")
    parser.add_argument("--seed", type=int, help="seed of scenes, initial weights and augmentation")
    parser.add_argument("--device", help="auto, cpu, cuda ...")
    parser.add_argument("--workers", type=int, help="processes that draw scenes")
    parser.add_argument("--redrawn", type=int, help="renders that the denoiser redraws for stage objects")
    parser.add_argument("--resume", action="store_true", default=None, help="continue from a checkpoint: unet, objects")
    parser.add_argument("--anneal", action=argparse.BooleanOptionalAction, help="decay the rate to zero at the end")
    parser.add_argument("--compile", action="store_true", default=None, help="compile the unet")
    parser.add_argument("--log-every", type=int, help="steps between printed lines; 0 prints none")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and runs the stages; returns the exit status."""
    overrides = vars(build_parser().parse_args(arguments))
    stage, out = overrides.pop("stage"), overrides.pop("out")
    torch.set_float32_matmul_precision("high")  # TF32 if available
    try:
        for name in STAGES if stage == "all" else [stage]:
            run_stage(name, out, **overrides)
    except AdDiffusionError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

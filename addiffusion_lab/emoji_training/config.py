"""Configuration and report of a training stage."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from addiffusion_env.errors import ConfigError
from addiffusion_lab.emoji_training import STAGES


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one stage; :func:`stage_config` fills in the stage's defaults.

    Attributes:
        out: folder of weights; earlier stages are read from it, this one is written to it.
        seconds: training time; exactly one of ``seconds`` and ``steps`` is set.
        steps: number of optimiser steps.
        batch: images per step.
        scenes: number of scenes drawn before training; backgrounds and augmentation are redrawn at every step.
        lr: peak learning rate.
        seed: seed of scenes, initial weights and augmentation.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` ... On CUDA the networks run in bfloat16.
        workers: number of processes that draw scenes; the scenes do not depend on it.
        resume: ``unet`` and ``objects`` continue from their checkpoint in ``out``.
        anneal: decay the learning rate to zero at the end; off for a ``unet`` run that is to be resumed.
        redrawn: renders that the denoiser redraws for ``objects``, before training.
        compile: apply ``torch.compile`` to ``unet``: worthwhile for training of more than a few minutes.
        log_every: steps between two printed lines; 0 prints none.
    """

    out: Path
    seconds: float | None = None
    steps: int | None = None
    batch: int = 256
    scenes: int = 100_000
    lr: float = 4e-4
    seed: int = 0
    device: str = "auto"
    workers: int = 1
    redrawn: int = 8192
    resume: bool = False
    anneal: bool = True
    compile: bool = False
    log_every: int = 200

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.steps is None):
            got = f"seconds={self.seconds}, steps={self.steps}"
            raise ConfigError(f"a stage needs exactly one budget, got {got}", "give --seconds or --steps")
        for name in ("seconds", "steps", "batch", "scenes", "lr", "workers", "redrawn"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, got {value}", f"raise --{name}")


@dataclass(frozen=True)
class TrainReport:
    """The result of a stage.

    Attributes:
        folder: folder that was written.
        steps: optimiser steps taken in this run.
        loss: loss of the last step.
        metrics: the stage's own measures, by name (``"psnr"`` in dB, shares in [0, 1] ...).
    """

    folder: Path
    steps: int
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)


# Batch, scenes and seconds of the unet and the seconds of vae, vae_decoder, clip and preference are those of the
# shipped weights, on one H100; the other values were not recorded and are chosen for the same hardware.
STAGE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "tokenizer": {"steps": 1},
    "vae": {"seconds": 130.0, "batch": 256},
    "vae_decoder": {"seconds": 150.0, "batch": 256},
    "preview": {"seconds": 60.0, "batch": 256},
    "unet": {"seconds": 800.0, "batch": 1024, "scenes": 600_000, "lr": 8e-4},
    "clip": {"seconds": 200.0, "batch": 1024, "scenes": 300_000},
    "dino": {"seconds": 100.0, "batch": 512},
    "detector": {"seconds": 100.0, "batch": 512},
    "preference": {"seconds": 100.0, "batch": 256, "scenes": 200_000, "lr": 8e-4},
    "objects": {"seconds": 3000.0, "batch": 48, "scenes": 40_000, "lr": 2e-3},
}


def stage_config(stage: str, out: str | Path, **overrides: Any) -> TrainConfig:
    """The settings of a stage: its defaults, with ``overrides`` (those that are not ``None``) on top.

    Raises:
        UnknownNameError: for a stage that does not exist.
        ConfigError: for a value out of range, or two budgets.
    """
    STAGES[stage]  # raises for an unknown name
    given = {name: value for name, value in overrides.items() if value is not None}
    defaults = dict(STAGE_DEFAULTS[stage])
    if "steps" in given or "seconds" in given:
        defaults.pop("steps", None)
        defaults.pop("seconds", None)
    return TrainConfig(**(defaults | given), out=Path(out))


class Tick(NamedTuple):
    """One optimiser step.

    Attributes:
        step: step number, from 1.
        progress: share of the budget spent before this step, in [0, 1).
    """

    step: int
    progress: float


def rate_factor(progress: float, warm: float, tail: float) -> float:
    """The learning rate at ``progress``, relative to its peak: linear warm-up, constant, half a cosine; at least 0.01.

    Args:
        progress: share of the budget spent, in [0, 1].
        warm: share spent warming up.
        tail: share spent on the cosine at the end.

    >>> [round(rate_factor(progress, 0.02, 0.5), 2) for progress in (0, 0.01, 0.3, 0.75, 1)]
    [0.01, 0.5, 1.0, 0.5, 0.01]
    """
    factor = 1.0
    if progress < warm:
        factor = progress / warm
    elif progress > 1 - tail:
        factor = 0.5 * (1 + math.cos(math.pi * (progress - 1 + tail) / tail))
    return max(factor, 0.01)


def budgeted_steps(
    optimizer: torch.optim.Optimizer,
    lr: float,
    seconds: float | None = None,
    steps: int | None = None,
    warm: float = 0.02,
    tail: float = 0.5,
) -> Iterator[Tick]:
    """Iterates over the steps of a budget and sets the optimiser's rate before each.

    Args:
        optimizer: the optimiser whose learning rate is set.
        lr: the peak learning rate.
        seconds: budget of wall-clock time, counted from the first step; or
        steps: budget of steps.
        warm: see :func:`rate_factor`.
        tail: see :func:`rate_factor`.
    """
    start, step = time.monotonic(), 0

    def spent() -> float:
        if steps is not None:
            return step / steps
        assert seconds is not None
        return (time.monotonic() - start) / seconds

    while (progress := spent()) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * rate_factor(progress, warm, tail)
        step += 1
        yield Tick(step, progress)

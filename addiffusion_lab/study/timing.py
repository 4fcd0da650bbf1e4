"""What each part of a picture costs in milliseconds, measured side by side in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.prompts.base import Prompt
from addiffusion_env.scorers.look import LookScorers
from addiffusion_lab.study.arms import Clock


def measure_clock(backbone: Backbone, scorers: LookScorers, prompts: Sequence[Prompt], rounds: int = 9) -> Clock:
    """Times a guided evaluation, a look, a full decode and a scoring of as many pictures as there are prompts.

    Interleaved, the median of ``rounds``, after one round that does not count.
    """
    size = len(prompts)
    conditioning = backbone.encode([prompt.text for prompt in prompts])
    x = torch.randn(size, *backbone.capabilities.latent_shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.full((size,), float(backbone.sigmas(6, "trailing")[2]), dtype=torch.float64)
    scale = torch.full((size,), 4.0, dtype=torch.float64)
    x0 = backbone.predict(x, sigma, conditioning, scale).x0
    pictures = backbone.decode(x0)
    parts: dict[str, Callable[[], object]] = {
        "call": lambda: backbone.predict(x, sigma, conditioning, scale),
        "look": lambda: scorers.look(backbone.preview(x0), prompts),
        "decode": lambda: backbone.decode(x0),
        "score": lambda: scorers.look(pictures, prompts),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds + 1):
        for name, work in parts.items():
            begun = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - begun)
    each = {name: 1000 * float(np.median(values[1:])) / size for name, values in times.items()}
    each["call"] /= 2  # a guided evaluation is two network calls
    return Clock(**each)

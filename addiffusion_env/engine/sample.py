"""Sampling from noise to image in one loop: what the engine does for many lanes, without any decisions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.solvers import SCHEDULER, SOLVERS
from addiffusion_env.prompts import Prompt


@torch.no_grad()
def sample(
    backbone: Backbone,
    prompts: Sequence[str | Prompt],
    steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
) -> Tensor:
    """Draws one image for each prompt with every step of the schedule: the policy ``continue``, as a loop.

    The images are those of the engine (:mod:`addiffusion_env.engine.engine`) with the backbone's default solver.

    Args:
        backbone: the model.
        prompts: one image each.
        steps: number of denoising steps; ``None`` for the model's default.
        guidance_scale: classifier-free guidance scale, 1 for no guidance; ``None`` for the model's default.
        seed: determines the noise together with each prompt's id.

    Returns:
        (B, 3, H, W) float32 in [-1, 1].
    """
    defaults = backbone.capabilities
    steps = steps or defaults.default_steps
    scale = defaults.default_guidance if guidance_scale is None else guidance_scale
    images = [(Prompt.of(prompt), seed) for prompt in prompts]
    conditioning, latents, schedules = backbone.begin(images, steps, defaults.default_spacing)
    levels = torch.from_numpy(np.stack(schedules))  # (B, m + 1) decreasing noise levels
    scales = torch.full((len(images),), scale, dtype=torch.float64)
    for column in range(1, levels.shape[1]):
        prediction = backbone.predict(latents.x, latents.sigma, conditioning, scales)
        if defaults.default_solver == SCHEDULER:
            latents = backbone.scheduler_step(latents, prediction, conditioning, levels[:, column])
        else:
            last = torch.full((len(images),), column == levels.shape[1] - 1)
            solver = SOLVERS.load(defaults.default_solver)
            latents = solver(backbone.path, latents, prediction.x0, levels[:, column], last)
    return backbone.decode(latents.x, [conditioning.row(row) for row in range(len(images))])

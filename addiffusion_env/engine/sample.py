"""The whole way from noise to image in one loop: what the engine does for many lanes, without any decisions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from addiffusion_env.backbones.base import Backbone, Conditioning, Latents
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
        steps: of the schedule; ``None`` for the model's own number.
        guidance_scale: of classifier-free guidance, 1 being none; ``None`` for the model's own.
        seed: with each prompt's id it fixes the noise.

    Returns:
        (B, 3, H, W) float32 in [-1, 1].
    """
    own = backbone.capabilities
    steps, scale = steps or own.default_steps, own.default_guidance if guidance_scale is None else guidance_scale
    begun = [backbone.begin(Prompt.of(prompt), seed, steps, own.default_spacing) for prompt in prompts]
    conditioning, latents = Conditioning.cat([part[0] for part in begun]), Latents.cat([part[1] for part in begun])
    levels = torch.from_numpy(np.stack([part[2] for part in begun]))  # (B, m + 1) noise levels, falling
    scales = torch.full((len(begun),), scale, dtype=torch.float64)
    for column in range(1, levels.shape[1]):
        prediction = backbone.predict(latents.x, latents.sigma, conditioning, scales)
        if own.default_solver == SCHEDULER:
            latents = backbone.scheduler_step(latents, prediction, conditioning, levels[:, column])
        else:
            last = torch.full((len(begun),), column == levels.shape[1] - 1)
            solver = SOLVERS.load(own.default_solver)
            latents = solver(backbone.path, latents, prediction.x0, levels[:, column], last)
    return backbone.decode(latents.x, [part[0] for part in begun])

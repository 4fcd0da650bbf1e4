"""A backbone's predictions on a fixed input; tiny models are in addiffusion_lab."""

from __future__ import annotations

import torch


def predicted(backbone):
    x = torch.randn(2, *backbone.capabilities.latent_shape, generator=torch.Generator().manual_seed(0))
    scale = torch.full((2,), backbone.capabilities.default_guidance, dtype=torch.float64)
    sigma = torch.tensor([0.8, 0.4], dtype=torch.float64)
    return backbone.predict(x, sigma, backbone.encode(["a dog", "a red cup"]), scale).x0

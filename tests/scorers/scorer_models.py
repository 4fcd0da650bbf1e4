"""Shapes, names and random weights of tiny models in the true file formats."""

from __future__ import annotations

import torch

from addiffusion_lab.tiny_pipelines.scorers import (  # noqa: F401 (the tests take all shapes from here)
    MED_CONFIG,
    head_state,
    random_weights,
    text_state,
    vision_state,
)

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def images(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    """(count, 3, size, size) smooth random images in [-1, 1]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")

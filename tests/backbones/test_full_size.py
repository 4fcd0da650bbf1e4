"""The models at their real sizes, on torch's meta device: shapes without numbers, so that no weights are needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import full_size

from addiffusion_env.backbones.calls.denoiser_hooks import attention_grid

pytestmark = pytest.mark.slow

EXPECTED = {
    # parameters in millions, latents, attention grid
    "sd15": (860, (4, 64, 64), (16, 16)),
    "sd21": (866, (4, 96, 96), (24, 24)),
    "sdxl": (2567, (4, 128, 128), (32, 32)),
    "flux": (11891, (16, 128, 128), (64, 64)),
    "sd35": (2243, (16, 128, 128), None),
    "z_image": (6155, (16, 128, 128), None),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_parameters_and_attention_grid(name):
    millions, latents, grid = EXPECTED[name]
    with torch.device("meta"):
        pipe = full_size.FULL[name]()
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    assert sum(value.numel() for value in denoiser.parameters()) / 1e6 == pytest.approx(millions, abs=1)
    assert attention_grid(denoiser, latents) == grid

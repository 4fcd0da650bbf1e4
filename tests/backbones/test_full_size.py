"""The models at their real sizes, on torch's meta device: shapes without numbers, so that no weights are needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import full_size

from addiffusion_env.backbones import BACKBONES

EXPECTED = {
    # parameters in millions, latents, picture, attention grid, text window, reference (steps, guidance, solver)
    "sd15": (860, (4, 64, 64), 512, (16, 16), 77, (50, 7.5, "ddim")),
    "sd21": (866, (4, 96, 96), 768, (24, 24), 77, (50, 7.5, "ddim")),
    "sdxl": (2567, (4, 128, 128), 1024, (32, 32), 77, (50, 5.0, "ddim")),
    "flux": (11891, (16, 128, 128), 1024, (64, 64), 256, (4, 1.0, "euler_flow")),
}


@pytest.fixture(params=EXPECTED)
def name(request):
    return request.param


@pytest.fixture
def backbone(name):
    with torch.device("meta"):
        pipe = full_size.FULL[name]()
    return BACKBONES.load(name).from_pipeline(pipe, preview="linear")


def test_capabilities_and_one_evaluation(name, backbone):
    millions, latents, side, grid, window, reference = EXPECTED[name]
    assert sum(value.numel() for value in backbone.denoiser.parameters()) / 1e6 == pytest.approx(millions, abs=1)
    found = backbone.capabilities
    assert found.latent_shape == latents
    assert found.image_size == (side, side)
    assert found.preview_size == (224, 224)
    assert found.attention_grid == grid
    assert found.max_tokens == window
    assert (found.default_steps, found.default_guidance, found.default_solver) == reference
    assert found.guidance == (name != "flux")

    conditioning = backbone.encode_uncached(["a red cup", "a dog"])
    assert conditioning.tensors["text"].shape == (
        2,
        window,
        {"sd15": 768, "sd21": 1024, "sdxl": 2048, "flux": 4096}[name],
    )
    if name in ("sdxl", "flux"):
        assert conditioning.tensors["pooled"].shape == (2, {"sdxl": 1280, "flux": 768}[name])
    x = torch.empty(2, *latents, device="meta")
    times = torch.empty(2, device="meta")
    text = {key: value for key, value in conditioning.tensors.items() if not key.startswith("negative_")}
    assert backbone.denoise(x, times, text).shape == x.shape
    assert backbone.decode(x).shape == (2, 3, side, side)
    assert backbone.preview(x).shape == (2, 3, 224, 224)

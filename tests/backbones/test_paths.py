"""Signal and noise scales of both paths."""

from __future__ import annotations

import math

import pytest
import torch

from addiffusion_env.backbones.schedules import RectifiedFlow, VariancePreserving, rows

VP, FLOW = VariancePreserving(), RectifiedFlow()
LEVELS = torch.tensor([0.05, 0.3, 0.7, 0.95], dtype=torch.float64)


@pytest.mark.parametrize("path", [VP, FLOW])
def test_noise_can_be_taken_out_again(path):
    x0, noise = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x = path.mix(x0, noise, LEVELS)
    torch.testing.assert_close(path.noise_of(x, x0, LEVELS), noise, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", [VP, FLOW])
def test_clean_at_sigma_zero(path):
    x0, noise = torch.randn(2, 1, 3, 4, 4)
    assert torch.equal(path.mix(x0, noise, torch.zeros(1, dtype=torch.float64)), x0)
    assert float(path.half_log_snr(torch.zeros(1, dtype=torch.float64))) == math.inf


def test_variance_is_preserved():
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(VP.alpha(sigma) ** 2 + VP.std(sigma) ** 2, torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(VP.half_log_snr(sigma), -torch.log(sigma))  # sigma is std / alpha


def test_variance_preserving_mix_is_diffusers_add_noise():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    timesteps = torch.tensor([3, 250, 700, 999])
    alpha = scheduler.alphas_cumprod[timesteps].double()
    x0, noise = torch.randn(2, 4, 3, 4, 4)
    expected = scheduler.add_noise(x0, noise, timesteps)
    torch.testing.assert_close(VP.mix(x0, noise, torch.sqrt((1 - alpha) / alpha)), expected, atol=1e-5, rtol=1e-5)


def test_flow_is_a_straight_line():
    torch.testing.assert_close(FLOW.alpha(LEVELS) + FLOW.std(LEVELS), torch.ones(4, dtype=torch.float64))
    assert float(FLOW.half_log_snr(torch.tensor([0.5]))) == 0.0
    x0, noise = torch.randn(2, 1, 3, 4, 4)
    assert torch.equal(FLOW.mix(x0, noise, torch.ones(1, dtype=torch.float64)), noise)


def test_each_row_has_its_own_level():
    x0, noise = torch.randn(2, 4, 3, 4, 4)
    together = VP.mix(x0, noise, LEVELS)
    for row, level in enumerate(LEVELS):
        alone = VP.mix(x0[row : row + 1], noise[row : row + 1], level[None])
        torch.testing.assert_close(together[row : row + 1], alone)


def test_scales_take_the_dtype_of_the_latents():
    scaled = rows(LEVELS, torch.zeros(4, 3, 2, 2, dtype=torch.bfloat16))
    assert scaled.shape == (4, 1, 1, 1)
    assert scaled.dtype == torch.bfloat16

"""Schedules equal those of diffusers, and the conversions of noise levels and timesteps are inverse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from addiffusion_env.backbones.schedules import (
    AYS_SD15,
    AYS_SDXL,
    SPACINGS,
    VP_SPACINGS,
    DiscreteSchedule,
)
from addiffusion_env.errors import ConfigError, UnknownNameError

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# Some divide 1000 and some do not; 1000 is every level.
COUNTS = (1, 2, 3, 4, 6, 7, 8, 10, 11, 13, 20, 25, 30, 37, 50, 64, 99, 100, 150, 333, 500, 999)


@pytest.fixture(scope="module")
def schedule():
    from diffusers import DDIMScheduler

    return DiscreteSchedule.from_alphas_cumprod(DDIMScheduler(**SD15).alphas_cumprod, False, 1)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_equal_diffusers(spacing, offset):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**SD15, timestep_spacing=spacing, steps_offset=offset)
    for steps in COUNTS:
        scheduler.set_timesteps(steps)
        expected = scheduler.timesteps.numpy()[:steps]
        np.testing.assert_array_equal(SPACINGS[spacing](steps, 1000, offset), expected, err_msg=f"{steps} steps")


AYS = {"sd15": ("StableDiffusion", AYS_SD15), "sdxl": ("StableDiffusionXL", AYS_SDXL)}


@pytest.mark.parametrize("family", AYS)
def test_align_your_steps_is_the_familys_published_list_at_ten_steps(tiny, family):
    from diffusers.schedulers import AysSchedules

    published, ours = AYS[family]
    assert AysSchedules[f"{published}Timesteps"] == list(ours[:-1])
    backbone = tiny(family).load()
    sigmas = torch.from_numpy(backbone.sigmas(10, "ays"))
    np.testing.assert_array_equal(backbone.timesteps(sigmas[:-1]), ours[:-1])
    levels = torch.tensor(AysSchedules[f"{published}Sigmas"][:-1])  # of which the timesteps are the nearest whole ones
    np.testing.assert_allclose(backbone.convention.schedule.timestep_at(levels), ours[:-1], atol=1)
    assert sigmas[-1] == backbone.convention.schedule.final_sigma


@pytest.mark.parametrize("listed", [AYS_SD15, AYS_SDXL], ids=["sd15", "sdxl"])
def test_align_your_steps_interpolates_levels_log_linearly(schedule, listed):
    """As recommended by its authors: eleven levels to n + 1, the last being the level after the last step."""
    schedule = replace(schedule, ays_timesteps=listed)
    levels = schedule.sigma_at(np.array(listed))
    np.testing.assert_allclose(schedule.sigmas(10, "ays")[:-1], levels[:-1])
    np.testing.assert_allclose(schedule.sigmas(5, "ays")[:-1], levels[:-1:2])
    twice = schedule.sigmas(20, "ays")
    np.testing.assert_allclose(twice[:-1:2], levels[:-1])
    np.testing.assert_allclose(twice[1::2], np.sqrt(levels[:-1] * levels[1:]))  # halfway in the logarithm
    for steps in (1, 3, 8, 50):
        expected = np.exp(np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, 11), np.log(levels)))
        np.testing.assert_allclose(schedule.sigmas(steps, "ays")[:-1], expected[:-1])


def test_align_your_steps_at_other_counts_in_numbers(schedule):
    np.testing.assert_allclose(schedule.sigmas(20, "ays")[-4:-1], [0.246, 0.152, 0.066], atol=1e-3)
    np.testing.assert_allclose(schedule.sigmas(5, "ays")[-4:-1], [1.886, 0.963, 0.399], atol=2e-3)


def test_align_your_steps_needs_the_training_levels_that_it_counts(schedule):
    short = DiscreteSchedule(schedule.log_sigmas[:500], 0.0)
    with pytest.raises(ConfigError, match="needs 1000 training timesteps, the model has 500"):
        short.sigmas(10, "ays")


@pytest.mark.parametrize("spacing", sorted(VP_SPACINGS))
def test_every_schedule_falls_and_has_its_length(schedule, spacing):
    for steps in (*COUNTS[1:], 1000):
        if spacing == "coarse_fine" and steps > 800:
            with pytest.raises(ConfigError, match="use 800 at most"):
                schedule.sigmas(steps, spacing)
            continue
        sigmas = schedule.sigmas(steps, spacing)
        assert sigmas.shape == (steps + 1,)
        assert sigmas.dtype == np.float64
        assert (np.diff(sigmas[:-1]) < 0).all()
        # linspace and a thousand steps end at timestep 0, which is also the final level of SD 1.5.
        assert sigmas[-1] <= sigmas[-2]


def test_coarse_fine_begins_as_trailing_with_six_steps_does():
    timesteps = SPACINGS["coarse_fine"](8, 1000, 1)
    np.testing.assert_array_equal(timesteps[:4], SPACINGS["trailing"](6, 1000, 1)[:4])
    np.testing.assert_array_equal(timesteps[3:], [499, 399, 299, 199, 99])


@pytest.mark.parametrize("to_one", [True, False])
def test_final_level(to_one):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**SD15, set_alpha_to_one=to_one)
    sigmas = DiscreteSchedule.from_alphas_cumprod(scheduler.alphas_cumprod, to_one, 1).sigmas(5, "leading")
    alpha = float(scheduler.final_alpha_cumprod)
    assert sigmas[-1] == pytest.approx(((1 - alpha) / alpha) ** 0.5, abs=1e-6)
    assert (sigmas[-1] == 0) == to_one


def test_sigma_equals_the_euler_scheduler(schedule):
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(**SD15, timestep_spacing="trailing", final_sigmas_type="sigma_min")
    scheduler.set_timesteps(8)
    np.testing.assert_allclose(schedule.sigmas(8, "trailing"), scheduler.sigmas.numpy(), rtol=1e-4)


def test_whole_timesteps_survive_the_way_there_and_back(schedule):
    timesteps = np.arange(1000, dtype=np.float64)
    back = schedule.timestep_at(torch.from_numpy(schedule.sigma_at(timesteps)))
    np.testing.assert_array_equal(back.numpy(), timesteps)


def test_levels_between_timesteps_survive_too(schedule):
    timesteps = np.array([0.25, 17.5, 300.001, 998.75])
    back = schedule.timestep_at(torch.from_numpy(schedule.sigma_at(timesteps)))
    np.testing.assert_allclose(back.numpy(), timesteps, atol=1e-6)


def test_levels_outside_are_clipped(schedule):
    assert schedule.timestep_at(torch.tensor([0.0, 1e9])).tolist() == [0.0, 999.0]


def test_zero_terminal_snr_has_a_finite_start():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**SD15, rescale_betas_zero_snr=True)
    schedule = DiscreteSchedule.from_alphas_cumprod(scheduler.alphas_cumprod, False, 1)
    sigmas = schedule.sigmas(10, "trailing")
    assert np.isfinite(sigmas).all()
    assert sigmas[0] > 1000


def test_mistyped_spacing_names_the_nearest(schedule):
    with pytest.raises(UnknownNameError, match="did you mean 'trailing'"):
        schedule.sigmas(10, "trailling")


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts(schedule, steps):
    with pytest.raises(ConfigError, match=f"got {steps}"):
        schedule.sigmas(steps, "trailing")

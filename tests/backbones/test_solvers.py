"""Each solver compared with the diffusers scheduler of its name, in mixed batches, and with closed forms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from addiffusion_env.backbones.batches import History, Latents
from addiffusion_env.backbones.schedules import DiscreteSchedule, RectifiedFlow, VariancePreserving
from addiffusion_env.backbones.solvers import SOLVERS, ddim_step, dpmpp_2m_step, unipc_step

SHAPE = (3, 4, 4, 4)
SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VP, FLOW = VariancePreserving(), RectifiedFlow()
ALL = [("ddim", VP), ("dpmpp_2m", VP), ("unipc", VP), ("ddim", FLOW), ("unipc", FLOW)]


def tensor(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def network(x, step):
    """A deterministic stand-in for a noise or velocity prediction: smooth in x, different at every step."""
    return torch.tanh(0.7 * x.roll(1, dims=-1) - 0.2 * x + 0.1 * step)


def uniform(sigma):
    return torch.full((SHAPE[0],), float(sigma), dtype=torch.float64)


@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 4, 7, 20])
def test_ddim_equals_diffusers(spacing, to_one, steps):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        **SD15, clip_sample=False, set_alpha_to_one=to_one, steps_offset=1, timestep_spacing=spacing
    )
    scheduler.set_timesteps(steps)
    schedule = DiscreteSchedule.from_alphas_cumprod(scheduler.alphas_cumprod, to_one, 1)
    x = tensor(0)
    latents = Latents.start(x, uniform(1.0))
    for index, timestep in enumerate(scheduler.timesteps.tolist()):
        # diffusers steps to t - T // steps, which is its own next timestep only where that divides evenly.
        following = timestep - 1000 // steps
        onward = schedule.final_sigma if following < 0 else schedule.sigma_at(np.array(following))
        sigma = uniform(schedule.sigma_at(np.array(timestep)))
        noise = network(x, index)
        result = scheduler.step(noise, timestep, x)
        x0 = (latents.x - VP.std(sigma)[0].float() * noise) / VP.alpha(sigma)[0].float()
        stepped = ddim_step(VP, Latents(latents.x, sigma, latents.history), x0, uniform(onward))
        torch.testing.assert_close(stepped.x, result.prev_sample, atol=1e-5, rtol=1e-5)
        assert torch.equal(stepped.sigma, uniform(onward))
        x = result.prev_sample
        latents = Latents(x, stepped.sigma, stepped.history)  # errors must not cancel over the steps


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_dpmpp_2m_equals_diffusers(spacing, final, steps):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        **SD15, timestep_spacing=spacing, final_sigmas_type=final, steps_offset=1, lower_order_final=False
    )
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double()
    x = tensor(1)
    latents = Latents.start(x, uniform(sigmas[0]))
    for index, timestep in enumerate(scheduler.timesteps):
        noise = network(x, index)
        x = scheduler.step(noise, timestep, x).prev_sample
        sigma = latents.sigma
        x0 = (latents.x - VP.std(sigma)[0].float() * noise) / VP.alpha(sigma)[0].float()
        latents = dpmpp_2m_step(VP, latents, x0, uniform(sigmas[index + 1]))
        torch.testing.assert_close(latents.x, x, atol=1e-5, rtol=1e-5)


def unipc_against(scheduler, path, steps, lower_order_final=False):
    """Both start from the same noise with the same network and are compared after every step."""
    sigmas = scheduler.sigmas.double()
    x = tensor(1)
    latents = Latents.start(x, uniform(sigmas[0]))
    for index, timestep in enumerate(scheduler.timesteps):
        output = network(x, index)
        theirs = scheduler.step(output, timestep, x).prev_sample
        x0 = network(latents.x, index)
        last = torch.full((len(x0),), lower_order_final and index == steps - 1)
        latents = unipc_step(path, latents, x0, uniform(sigmas[index + 1]), last)
        x = theirs
        torch.testing.assert_close(latents.x, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
def test_unipc_equals_diffusers(spacing, final, steps):
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        **SD15,
        timestep_spacing=spacing,
        final_sigmas_type=final,
        steps_offset=1,
        prediction_type="sample",
        lower_order_final=final == "zero",  # at sigma 0 its second order is infinite; elsewhere ours keeps it
    )
    scheduler.set_timesteps(steps)
    unipc_against(scheduler, VP, steps)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [2, 3, 8])
def test_the_last_step_of_unipc_is_corrected_and_of_first_order(spacing, steps):
    """If a schedule ends above sigma 0 the correction has an effect; at sigma 0 the step returns x0 in any case."""
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        **SD15, timestep_spacing=spacing, final_sigmas_type="sigma_min", steps_offset=1, prediction_type="sample"
    )
    scheduler.set_timesteps(steps)
    unipc_against(scheduler, VP, steps, lower_order_final=True)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_unipc_on_a_flow_equals_diffusers(steps):
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="sample")
    scheduler.set_timesteps(steps)
    unipc_against(scheduler, FLOW, steps)


@pytest.mark.parametrize("path", [VP, FLOW])
def test_unipc_is_finite_from_pure_noise(path):
    """A flow starts at alpha 0, where the log signal-to-noise ratio is minus infinity."""
    latents = Latents.start(tensor(1), uniform(1.0))
    for index, onward in enumerate((0.8, 0.5, 0.3, 0.0)):
        latents = unipc_step(path, latents, network(latents.x, index), uniform(onward))
        assert bool(torch.isfinite(latents.x).all())


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 9])
def test_ddim_on_a_flow_equals_eulers_step_of_diffusers(steps, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    x = tensor(2)
    latents = Latents.start(x, uniform(scheduler.sigmas[0]))
    for index, timestep in enumerate(scheduler.timesteps):
        velocity = network(x, index)
        x = scheduler.step(velocity, timestep, x).prev_sample
        x0 = latents.x - latents.sigma[0].float() * velocity
        latents = ddim_step(FLOW, latents, x0, uniform(scheduler.sigmas[index + 1]))
        torch.testing.assert_close(latents.x, x, atol=1e-5, rtol=1e-5)
    assert float(latents.sigma[0]) == 0.0


@pytest.mark.parametrize(("name", "path"), ALL)
def test_mixed_sigmas_in_one_batch_equal_separate_calls(name, path):
    step = SOLVERS.load(name)
    sigma = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
    onward = torch.tensor([0.7, 0.2, 0.0], dtype=torch.float64)
    past = torch.tensor([float("nan"), 0.8, 0.4], dtype=torch.float64)  # the first row has no history
    older = torch.tensor([float("nan"), float("nan"), 0.7], dtype=torch.float64)
    latents, x0 = Latents(tensor(3), sigma, History(tensor(4), past, tensor(13), older)), tensor(5)
    together = step(path, latents, x0, onward)
    for row in range(3):
        alone = step(path, latents.row(row), x0[row : row + 1], onward[row : row + 1])
        torch.testing.assert_close(together.row(row).x, alone.x, atol=1e-6, rtol=1e-6)
        assert torch.equal(together.row(row).history.sigma, alone.history.sigma)
    assert bool(torch.isfinite(together.x).all())


@pytest.mark.parametrize(("name", "path"), ALL)
def test_a_step_to_sigma_zero_returns_x0(name, path):
    latents = Latents(tensor(6), uniform(0.3), History(tensor(7), uniform(0.6), tensor(14), uniform(0.8)))
    x0 = tensor(8)
    torch.testing.assert_close(SOLVERS.load(name)(path, latents, x0, uniform(0.0)).x, x0, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("name", "path"), [("ddim", VP), ("ddim", FLOW)])
def test_a_step_to_the_same_level_changes_nothing(name, path):
    latents = Latents.start(tensor(9), uniform(0.5))
    torch.testing.assert_close(SOLVERS.load(name)(path, latents, tensor(10), uniform(0.5)).x, latents.x)


def test_dpmpp_2m_without_history_is_ddim():
    latents, x0 = Latents.start(tensor(11), uniform(2.0)), tensor(12)
    first = dpmpp_2m_step(VP, latents, x0, uniform(1.0))
    torch.testing.assert_close(first.x, ddim_step(VP, latents, x0, uniform(1.0)).x, atol=1e-6, rtol=1e-5)
    assert torch.equal(first.history.sigma, uniform(2.0))
    assert torch.equal(first.history.x0, x0)


# Data x0 ~ N(0, SPREAD^2): the best denoiser is linear in x, and the probability-flow ODE scales x with the marginal's
# standard deviation sqrt(alpha^2 SPREAD^2 + std^2), so every solver's error is known.
SPREAD = 0.6


def marginal(path, sigma):
    return torch.sqrt(path.alpha(sigma) ** 2 * SPREAD**2 + path.std(sigma) ** 2)


def gaussian_error(name, path, steps, start, end):
    """Relative error of the solved trajectory at ``end``, on levels evenly spaced in log sigma."""
    levels = torch.from_numpy(np.geomspace(start, end, steps + 1))
    latents = Latents.start(torch.ones(1, 1, 1, 1, dtype=torch.float64), levels[:1])
    for onward in levels[1:]:
        sigma = latents.sigma
        x0 = latents.x * path.alpha(sigma) * SPREAD**2 / marginal(path, sigma) ** 2
        latents = SOLVERS.load(name)(path, latents, x0, onward[None])
    exact = marginal(path, levels[-1:]) / marginal(path, levels[:1])
    return abs(float(latents.x) / float(exact) - 1)


@pytest.mark.parametrize(
    ("name", "path", "start", "end", "order"),
    [
        ("ddim", VP, 10.0, 0.1, 1),
        ("dpmpp_2m", VP, 10.0, 0.1, 2),
        ("unipc", VP, 10.0, 0.1, 3),
        ("ddim", FLOW, 0.9, 0.1, 1),
    ],
)
def test_convergence_order_on_a_gaussian(name, path, start, end, order):
    errors = [gaussian_error(name, path, steps, start, end) for steps in (64, 128, 256)]
    slopes = [np.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert errors[-1] < 0.01
    np.testing.assert_allclose(slopes, order, atol=0.15)

"""Contracts of solvers."""

from __future__ import annotations

import torch

from addiffusion_env.backbones.batches import Latents
from addiffusion_env.backbones.schedules import NoisePath, VariancePreserving
from addiffusion_env.backbones.solvers import Solver
from addiffusion_env.checks.base import require

SHAPE = (3, 4, 6, 6)


def it_lands_on_the_prediction(solver: Solver) -> None:
    """A step to noise level 0 gives the clean prediction itself."""
    path, latents, x0 = _state()
    found = solver(path, latents, x0, torch.zeros(SHAPE[0], dtype=torch.float64))
    apart = float((found.x - x0).abs().max())
    require(apart < 1e-4, f"at noise level 0 it is {apart:.2g} off the prediction", "use first order in the last step")
    reached = bool((found.sigma == 0).all())
    require(reached, f"its sigma is {found.sigma.tolist()}", "set sigma of each row to its target")


def rows_step_alone(solver: Solver) -> None:
    """A row's step does not depend on the others, each with its own noise level and history."""
    path, latents, x0 = _state()
    sigma_next = latents.sigma * torch.tensor([0.5, 0.9, 0.1], dtype=torch.float64)
    twice = solver(path, solver(path, latents, x0, sigma_next), 0.9 * x0, sigma_next / 2)
    for index in range(SHAPE[0]):
        at = slice(index, index + 1)
        one = solver(path, solver(path, latents.row(index), x0[at], sigma_next[at]), 0.9 * x0[at], sigma_next[at] / 2)
        apart = float((twice.x[at] - one.x).abs().max())
        require(apart < 1e-5, f"row {index} alone differs by {apart:.2g}", "keep no state outside of Latents")


def a_step_of_no_length_stays(solver: Solver) -> None:
    """A first step to the same noise level changes nothing."""
    path, latents, x0 = _state()
    apart = float((solver(path, latents, x0, latents.sigma).x - latents.x).abs().max())
    require(apart < 1e-4, f"it moves by {apart:.2g}", "check the formula at sigma_next = sigma")


SOLVER_CONTRACTS = (it_lands_on_the_prediction, rows_step_alone, a_step_of_no_length_stays)
"""Subject: a function of the form :class:`Solver`."""


def _state() -> tuple[NoisePath, Latents, torch.Tensor]:
    path = VariancePreserving()
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    sigma = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)
    return path, Latents.start(path.mix(x0, noise, sigma), sigma), x0

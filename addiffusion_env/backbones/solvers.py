"""Solvers as pure functions: latents, a clean prediction and two noise levels in; latents and history out.

diffusers' schedulers keep a step index and refuse mixed timesteps. Here every row of a batch has its own noise level,
its own next one and its own history, so that lanes at different steps share one call. On a uniform batch each solver
equals the diffusers scheduler of that name (``tests/backbones/test_solvers.py``).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from addiffusion_env.backbones.base import History, Latents
from addiffusion_env.backbones.paths import NoisePath, rows
from addiffusion_env.errors import CapabilityError
from addiffusion_env.registry import Registry

SOLVERS = Registry(
    "solver",
    {
        "ddim": "addiffusion_env.backbones.solvers:ddim_step",
        "dpmpp_2m": "addiffusion_env.backbones.solvers:dpmpp_2m_step",
        "euler_flow": "addiffusion_env.backbones.solvers:euler_flow_step",
    },
)


def check_solver(name: str, path: NoisePath) -> None:
    """Refuses a solver that is wrong on a path.

    Raises:
        UnknownNameError: for an unknown solver.
        CapabilityError: for Euler's flow step on a path that is not straight.
    """
    SOLVERS[name]
    if name == "euler_flow" and path.name != "rectified_flow":
        raise CapabilityError(
            f"solver euler_flow is for rectified flows, this model is {path.name}", "use ddim or dpmpp_2m"
        )


class Solver(Protocol):
    """One step of every row from its sigma to its ``sigma_next``."""

    def __call__(self, path: NoisePath, latents: Latents, x0: Tensor, sigma_next: Tensor) -> Latents:
        """Takes the step.

        Args:
            path: how signal and noise mix.
            latents: where each row is; its ``sigma`` is where ``x0`` was predicted.
            x0: (B, C, H, W) the clean prediction there.
            sigma_next: (B,) float64 where each row goes, 0 allowed.
        """


def ddim_step(path: NoisePath, latents: Latents, x0: Tensor, sigma_next: Tensor) -> Latents:
    """DDIM with eta 0 (arXiv:2010.02502, equation 12): keeps the noise, changes its amount. First order."""
    noise = path.noise_of(latents.x, x0, latents.sigma)
    return Latents(path.mix(x0, noise, sigma_next), sigma_next, History(x0, latents.sigma))


def euler_flow_step(path: NoisePath, latents: Latents, x0: Tensor, sigma_next: Tensor) -> Latents:
    """Euler's step of a rectified flow: ``x + (sigma' - sigma) v`` with ``v = (x - x0) / sigma``. First order."""
    velocity = (latents.x - x0) / rows(latents.sigma, x0)
    x = latents.x + rows(sigma_next - latents.sigma, x0) * velocity
    return Latents(x, sigma_next, History(x0, latents.sigma))


def dpmpp_2m_step(path: NoisePath, latents: Latents, x0: Tensor, sigma_next: Tensor) -> Latents:
    """DPM-Solver++ 2M (arXiv:2211.01095, algorithm 2), midpoint form.

    Second order where a row has a previous prediction and does not land on sigma 0; first order otherwise, which is
    diffusers' ``lower_order_final`` with ``final_sigmas_type="zero"``. At sigma 0 the step returns ``x0``.
    """
    now, past = latents.sigma, latents.history.sigma
    lam, lam_next = path.half_log_snr(now), path.half_log_snr(sigma_next)
    # Two predictions at one level have no slope between them.
    second = ~torch.isnan(past) & (sigma_next > 0) & (past != now)
    lam_past = path.half_log_snr(torch.where(second, past, now))
    h = lam_next - lam
    # weight = h / (2 h_past): how far the slope of the last two predictions is carried on.
    weight = torch.where(second, h / (2 * (lam - lam_past)), torch.zeros_like(h))
    blend = x0 + rows(weight, x0) * (x0 - latents.history.x0)
    ratio = path.std(sigma_next) / path.std(now)
    gain = path.alpha(sigma_next) * -torch.expm1(-h)
    return Latents(rows(ratio, x0) * latents.x + rows(gain, x0) * blend, sigma_next, History(x0, now))

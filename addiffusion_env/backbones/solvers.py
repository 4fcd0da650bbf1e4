"""Solvers as pure functions: latents, a clean prediction and two noise levels in; latents and history out.

diffusers' schedulers keep a step index and do not support mixed timesteps. Here every row of a batch has its own noise
level, next level and history, so that lanes at different steps share one call. On a uniform batch each solver equals
the diffusers scheduler of that name (``tests/backbones/test_solvers.py``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from addiffusion_env.backbones.batches import Latents
from addiffusion_env.backbones.schedules import NoisePath, rows
from addiffusion_env.errors import unknown
from addiffusion_env.registry import Registry

SOLVERS = Registry(
    "solver",
    {
        "ddim": "addiffusion_env.backbones.solvers:ddim_step",
        "dpmpp_2m": "addiffusion_env.backbones.solvers:dpmpp_2m_step",
        "unipc": "addiffusion_env.backbones.solvers:unipc_step",
    },
)


SCHEDULER = "scheduler"
"""Instead of a solver: lanes use copies of the pipeline's own scheduler (:meth:`Backbone.scheduler_step`)."""


def check_solver(name: str) -> None:
    """Refuses an unknown solver.

    Raises:
        UnknownNameError: with the nearest name.
    """
    if name != SCHEDULER and name not in SOLVERS:
        raise unknown("solver", name, [*SOLVERS, SCHEDULER])


class Solver(Protocol):
    """One step of every row from its sigma to its ``sigma_next``."""

    def __call__(
        self, path: NoisePath, latents: Latents, x0: Tensor, sigma_next: Tensor, last: Tensor | None = None
    ) -> Latents:
        """Takes the step.

        Args:
            path: how signal and noise are mixed.
            latents: current state of each row; ``x0`` was predicted at its ``sigma``.
            x0: (B, C, H, W) the clean prediction at that level.
            sigma_next: (B,) float64 next level of each row, 0 allowed.
            last: (B,) bool: the schedule ends with this step, which is then of first order (diffusers'
                ``lower_order_final``); ``None`` for no row.
        """


def ddim_step(path: NoisePath, latents: Latents, x0: Tensor, sigma_next: Tensor, last: Tensor | None = None) -> Latents:
    """DDIM with eta 0 (arXiv:2010.02502, equation 12): keeps the noise and changes its scale. First order.

    On a rectified flow this is Euler's step, ``x + (sigma' - sigma) v`` with ``v = (x - x0) / sigma``.
    """
    noise = path.noise_of(latents.x, x0, latents.sigma)
    return Latents(path.mix(x0, noise, sigma_next), sigma_next, latents.history.then(x0, latents.sigma))


def dpmpp_2m_step(
    path: NoisePath, latents: Latents, x0: Tensor, sigma_next: Tensor, last: Tensor | None = None
) -> Latents:
    """DPM-Solver++ 2M (arXiv:2211.01095, algorithm 2), midpoint form.

    Second order if a row has a previous prediction, its next level is above 0 and it is not at its ``last`` step; first
    order otherwise. At sigma 0 the step returns ``x0``.
    """
    now, past = latents.sigma, latents.history.sigma
    lam, lam_next = path.half_log_snr(now), path.half_log_snr(sigma_next)
    # Two predictions at the same level do not define a slope.
    second = ~torch.isnan(past) & (sigma_next > 0) & (past != now)
    if last is not None:
        second = second & ~last
    lam_past = path.half_log_snr(torch.where(second, past, now))
    h = lam_next - lam
    # weight = h / (2 h_past): extrapolation of the slope of the last two predictions.
    weight = torch.where(second, h / (2 * (lam - lam_past)), torch.zeros_like(h))
    blend = x0 + rows(weight, x0) * (x0 - latents.history.x0)
    ratio = path.std(sigma_next) / path.std(now)
    gain = path.alpha(sigma_next) * -torch.expm1(-h)
    x = rows(ratio, x0) * latents.x + rows(gain, x0) * blend
    return Latents(x, sigma_next, latents.history.then(x0, now))


def unipc_step(
    path: NoisePath, latents: Latents, x0: Tensor, sigma_next: Tensor, last: Tensor | None = None
) -> Latents:
    """UniPC of order 2 with ``B(h) = e^h - 1`` (bh2; arXiv:2302.04867, algorithm 1): corrects, then predicts.

    The corrector revises the preceding step with the prediction at its end; it needs no additional evaluation and makes
    the solver third order. The predictor of this order is that of DPM-Solver++ 2M. Without history nothing is
    corrected. The last step of a schedule is corrected too, and then predicted in first order.
    """
    corrected = replace(latents, x=latents.x + _correction(path, latents, x0))
    stepped = dpmpp_2m_step(path, corrected, x0, sigma_next, last)
    return replace(stepped, history=latents.history.then(x0, latents.sigma))


def _correction(path: NoisePath, latents: Latents, x0: Tensor) -> Tensor:
    """UniC's correction of the latents of :func:`unipc_step`'s predictor: (B, C, H, W), 0 without history.

    Both formulas start from the corrected latents of the previous step and the same first-order part, which cancel in
    their difference: ``alpha (1 - e^-h) [(r1 - 1/2) D1 + r2 (x0 - x0')]``, where ``x0'`` is the prediction at the
    step's start and D1 the slope that the predictor used (0, and r2 = 1/2, if it was first order).
    """
    history, now = latents.history, latents.sigma
    known = ~torch.isnan(history.sigma) & (history.sigma != now)
    second = known & ~torch.isnan(history.older_sigma) & (history.older_sigma != history.sigma)
    # Placeholder levels that give finite numbers for rows without history; those rows are masked below.
    past = torch.where(known, history.sigma, 2 * now)
    older = torch.where(second, history.older_sigma, 2 * past)
    lam, lam_past, lam_older = (path.half_log_snr(sigma) for sigma in (now, past, older))
    h = lam - lam_past
    ratio = (lam_older - lam_past) / h
    growth = torch.expm1(-h)
    # The paper's b for B(h) = e^-h - 1 in clean predictions, and the solution of [[1, 1], [ratio, 1]] r = b.
    first_phi = -growth / h - 1
    b1, b2 = first_phi / growth, 2 * (-first_phi / h - 0.5) / growth
    r1 = torch.where(second, (b1 - b2) / (1 - ratio), torch.zeros_like(h))
    r2 = torch.where(second, b1 - r1, torch.full_like(h, 0.5))
    # Masked by where, not by a product: at the noisiest level of a flow, h and the ratio are infinite.
    slope = torch.where(second & torch.isfinite(ratio), (r1 - 0.5) / ratio, torch.zeros_like(h))
    change = rows(slope, x0) * (history.older_x0 - history.x0) + rows(r2, x0) * (x0 - history.x0)
    gain = torch.where(known, -path.alpha(now) * growth, torch.zeros_like(h))
    return rows(gain, x0) * change

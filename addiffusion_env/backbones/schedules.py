"""Noise levels: how signal and noise are mixed, the levels of a schedule, and re-spacing for an early exit.

A path writes the noisy latents at level sigma as ``x = alpha(sigma) * x0 + std(sigma) * noise``:

========================  ===================  =============================  ==========================
path                      sigma                alpha(sigma)                   std(sigma)
========================  ===================  =============================  ==========================
variance preserving (SD)  std / alpha, in      1 / sqrt(1 + sigma^2)          sigma / sqrt(1 + sigma^2)
                          [0, 14.6] on SD 1.5
rectified flow (Flux)     time, in [0, 1]      1 - sigma                      sigma
========================  ===================  =============================  ==========================

``sigma`` of the variance-preserving path is that of Karras et al. 2022 (arXiv:2206.00364), as in k-diffusion and
diffusers' Euler schedulers. All functions take and return float64 tensors of any shape.

The spacings are those of diffusers (``timestep_spacing`` of DDIMScheduler; table 2 of arXiv:2305.08891), plus Align
Your Steps (arXiv:2404.14507). Timesteps are the model's own integers; between them sigma is interpolated
log-linearly, so that an early exit can use any level.

Stopping a long schedule early and returning the predicted x0 gives the conditional mean: blurred, and worse than a
short schedule of the same cost, which covers all noise levels. An early exit therefore takes m more evaluations, spaced
evenly over the remaining levels. m = 0, the direct jump to x0, is available as an ablation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from addiffusion_env.errors import ConfigError, unknown


class NoisePath(ABC):
    """Signal and noise scales as functions of sigma; see the module's table."""

    @abstractmethod
    def alpha(self, sigma: Tensor) -> Tensor:
        """Scale of the clean latents."""

    @abstractmethod
    def std(self, sigma: Tensor) -> Tensor:
        """Scale of the noise."""

    def half_log_snr(self, sigma: Tensor) -> Tensor:
        """Lambda = log(alpha / std), DPM-Solver's time (arXiv:2206.00927, section 3); +inf at sigma 0."""
        return torch.log(self.alpha(sigma)) - torch.log(self.std(sigma))

    def mix(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Noises clean latents: (B, C, H, W), (B, C, H, W), (B,) -> (B, C, H, W)."""
        return rows(self.alpha(sigma), x0) * x0 + rows(self.std(sigma), x0) * noise

    def noise_of(self, x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
        """The noise in ``x`` given its clean latents ``x0``; ``sigma`` must be above 0."""
        return (x - rows(self.alpha(sigma), x) * x0) / rows(self.std(sigma), x)


class VariancePreserving(NoisePath):
    """The path of DDPM, SD 1.x, SD 2.x and SDXL."""

    def alpha(self, sigma: Tensor) -> Tensor:
        """``1 / sqrt(1 + sigma^2)``."""
        return torch.rsqrt(1 + sigma**2)

    def std(self, sigma: Tensor) -> Tensor:
        """``sigma / sqrt(1 + sigma^2)``."""
        return sigma * torch.rsqrt(1 + sigma**2)


class RectifiedFlow(NoisePath):
    """The straight path of rectified flow: Flux, SD 3."""

    def alpha(self, sigma: Tensor) -> Tensor:
        """``1 - sigma``."""
        return 1 - sigma

    def std(self, sigma: Tensor) -> Tensor:
        """``sigma`` itself."""
        return sigma


def rows(scale: Tensor, like: Tensor) -> Tensor:
    """Shapes a (B,) float64 scale to multiply (B, C, H, W) latents, in their dtype and on their device."""
    return scale.to(device=like.device, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))


# Ten-step timesteps published with Align Your Steps, as in diffusers (AysSchedules), and the end of the last step.
AYS_SD15 = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0)
AYS_SDXL = (999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0)


def leading(steps: int, train_steps: int, offset: int) -> np.ndarray:
    """``t = (train_steps // steps) * i + offset``: omits the noisiest levels. Default of DDIM and SD 1.5."""
    ratio = train_steps // steps
    # If every level is used, there is no room for an offset: diffusers indexes past the end of its table.
    offset = min(offset, train_steps - 1 - ratio * (steps - 1))
    return (np.arange(steps) * ratio)[::-1].astype(np.float64) + offset


def trailing(steps: int, train_steps: int, offset: int) -> np.ndarray:
    """Equal steps down from the noisiest level: the best spacing at few steps (arXiv:2305.08891)."""
    return np.round(np.arange(train_steps, 0, -train_steps / steps))[:steps] - 1


def linspace(steps: int, train_steps: int, offset: int) -> np.ndarray:
    """Evenly spaced from the noisiest level to the cleanest."""
    return np.linspace(0, train_steps - 1, steps).round()[::-1]


def coarse_fine(steps: int, train_steps: int, offset: int) -> np.ndarray:
    """Half of the time in the first three eighths of the steps, the other half in the rest.

    The layout is decided in the first half. With eight steps, the first three equal those of a six-step trailing
    schedule, so that a policy can assess the layout after three evaluations and either exit early with three more
    evaluations or continue with five finer ones.
    """
    if steps == 1:
        return trailing(1, train_steps, offset)
    if steps > train_steps * 4 // 5:
        raise ConfigError(
            f"coarse_fine has no room for {steps} steps in {train_steps} levels", f"use {train_steps * 4 // 5} at most"
        )
    first, half = max(1, round(steps * 3 / 8)), train_steps / 2
    early = np.linspace(train_steps, half, first + 1)[:-1]
    late = np.linspace(half, 0, steps - first + 1)[:-1]
    return np.round(np.concatenate([early, late]) - 1 + 1e-9)


SPACINGS: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "coarse_fine": coarse_fine,
}
"""Name -> decreasing timesteps from (steps, training steps, offset)."""

VP_SPACINGS = (*SPACINGS, "ays")
"""All spacings of variance-preserving models: the above, and Align Your Steps, whose levels depend on the family."""


@dataclass(frozen=True)
class DiscreteSchedule:
    """The training noise levels of a variance-preserving model.

    Attributes:
        log_sigmas: (T,) float64, log sigma at each integer timestep, increasing.
        final_sigma: level after the last step: 0, or sigma at timestep 0 if the checkpoint specifies it
            (``set_alpha_to_one=False``, as SD 1.5).
        steps_offset: added by leading spacing (1 for SD).
        ays_timesteps: the model family's Align Your Steps: ten timesteps, and the end of the last step.
    """

    log_sigmas: np.ndarray
    final_sigma: float
    steps_offset: int = 0
    ays_timesteps: tuple[int, ...] = AYS_SD15
    train_steps: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "train_steps", len(self.log_sigmas))

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor, set_alpha_to_one: bool, steps_offset: int) -> DiscreteSchedule:
        """Reads a diffusers scheduler's ``alphas_cumprod`` (T,)."""
        # Zero terminal SNR (arXiv:2305.08891) would start at sigma = inf; clipped as in diffusers' Euler scheduler.
        alphas = np.clip(alphas_cumprod.cpu().double().numpy(), 2.0**-24, None)
        log_sigmas = 0.5 * (np.log1p(-alphas) - np.log(alphas))
        return cls(log_sigmas, 0.0 if set_alpha_to_one else float(np.exp(log_sigmas[0])), steps_offset)

    def sigmas(self, steps: int, spacing: str) -> np.ndarray:
        """Noise levels of a schedule, (steps + 1,) float64, decreasing; the last is ``final_sigma``.

        Raises:
            UnknownNameError: for an unknown spacing.
            ConfigError: unless 1 <= steps <= T.
        """
        check_schedule(steps, self.train_steps, spacing, VP_SPACINGS)
        if spacing == "ays":
            return np.append(self.align_your_steps(steps), self.final_sigma)
        timesteps = SPACINGS[spacing](steps, self.train_steps, self.steps_offset)
        return np.append(self.sigma_at(timesteps), self.final_sigma)

    def align_your_steps(self, steps: int) -> np.ndarray:
        """Align Your Steps: the noise levels (steps,) of the published list, log-linearly interpolated to ``steps``.

        All eleven *levels* (including the final one) are interpolated in log sigma, as the authors recommend; ten steps
        give the list itself.

        Raises:
            ConfigError: for a model with fewer training timesteps than the list assumes.
        """
        if self.train_steps <= self.ays_timesteps[0]:
            raise ConfigError(
                f"Align Your Steps needs {self.ays_timesteps[0] + 1} training timesteps, the model has "
                f"{self.train_steps}",
                "use spacing=trailing",
            )
        listed = self.log_sigmas[list(self.ays_timesteps)]
        places = np.linspace(0, len(listed) - 1, steps + 1)[:-1]
        return np.exp(np.interp(places, np.arange(len(listed)), listed))

    def sigma_at(self, timestep: np.ndarray) -> np.ndarray:
        """Sigma at integer or fractional timesteps in [0, T - 1]."""
        return np.exp(np.interp(timestep, np.arange(self.train_steps), self.log_sigmas))

    def timestep_at(self, sigma: Tensor) -> Tensor:
        """The timestep of each sigma, (B,) float64; the inverse of :meth:`sigma_at`, clipped to [0, T - 1]."""
        log_sigma = np.log(np.clip(sigma.cpu().double().numpy(), 1e-10, None))
        timestep = np.interp(log_sigma, self.log_sigmas, np.arange(self.train_steps))
        # Integer timesteps must stay integers: a difference of 1e-12 would change the network's time embedding.
        whole = np.round(timestep)
        return torch.from_numpy(np.where(np.abs(timestep - whole) < 1e-6, whole, timestep))


def check_schedule(steps: int, most: int, spacing: str, known: Collection[str]) -> None:
    """Checks the number of steps and the spacing of a schedule.

    Raises:
        UnknownNameError: for a spacing that is not in ``known``.
        ConfigError: unless 1 <= steps <= ``most``.
    """
    if spacing not in known:
        raise unknown("timestep spacing", spacing, known)
    if not 1 <= steps <= most:
        raise ConfigError(f"steps must be 1 to {most}, got {steps}", "choose a number in that range")


AUTO_EARLY_EXIT_STEPS = 6
"""``early_exit_steps="auto"``: no step is longer than one of a six-step schedule; :func:`early_exit_evaluations`."""


def early_exit_evaluations(early_exit_steps: int | str, position: float, remaining: int) -> int:
    """The number of evaluations of an early exit.

    Args:
        early_exit_steps: a number, or ``"auto"``: enough that no early exit step is longer than that of a schedule of
            :data:`AUTO_EARLY_EXIT_STEPS` steps, and never more than continuing would cost.
        position: position of the lane on the schedule, 1 at the start and 0 at the end, in the schedule's own time.
        remaining: number of remaining steps of the schedule.

    Returns:
        A number in [0, remaining].

    Raises:
        ConfigError: for a negative number or another string.
    """
    if isinstance(early_exit_steps, str):
        if early_exit_steps != "auto":
            raise ConfigError(
                f"early_exit_steps must be a number or 'auto', got {early_exit_steps!r}", "use 0, 1, 2 ... or 'auto'"
            )
        return min(remaining, max(1, math.ceil(position * AUTO_EARLY_EXIT_STEPS - 1e-6)))
    if isinstance(early_exit_steps, bool) or early_exit_steps < 0:
        raise ConfigError(f"early_exit_steps must be 0 or more, got {early_exit_steps!r}", "use 0, 1, 2 ... or 'auto'")
    return min(int(early_exit_steps), remaining)


def respace(rest: np.ndarray, evaluations: int, positions: np.ndarray | None = None) -> np.ndarray:
    """Re-spaces the rest of a schedule into fewer steps, evenly in the model's own time.

    Args:
        rest: (r + 1,) noise levels from the lane's current one to the end, decreasing.
        evaluations: m, from 0 to r.
        positions: (r + 1,) the model's time at each of ``rest``, decreasing to 0; ``None`` uses the schedule's index.

    Returns:
        (m + 1,) noise levels with the same first and last entries; for m = 0 the first alone. Between grid points
        sigma is interpolated log-linearly (a last level of 0 counts as its predecessor's continuation).

    >>> respace(np.array([8.0, 4.0, 2.0, 1.0, 0.0]), 2).tolist()
    [8.0, 2.0, 0.0]
    """
    remaining = len(rest) - 1
    if not 0 <= evaluations <= remaining:
        raise ConfigError(
            f"an early exit of {evaluations} evaluations does not fit {remaining} remaining steps",
            f"use 0 to {remaining}",
        )
    if evaluations == 0:
        return rest[:1].copy()
    time = np.arange(remaining, -1, -1.0) if positions is None else np.asarray(positions, dtype=np.float64)
    places = np.linspace(time[0], time[-1], evaluations + 1)
    # log(0) cannot be interpolated: extend the last positive gap by one step, then restore the true end.
    positive = np.where(rest > 0, rest, rest[-2] ** 2 / rest[-3] if remaining > 1 else rest[0] / 2)
    grid = np.exp(np.interp(places, time[::-1], np.log(positive)[::-1]))  # np.interp needs increasing positions
    grid[0], grid[-1] = rest[0], rest[-1]
    return grid

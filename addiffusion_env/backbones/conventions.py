"""Parametrisations of diffusers' schedulers: their noise levels, scaling of latents, and clean prediction.

Four conventions cover diffusers' schedulers. All are converted to the engine's one notation
(:mod:`backbones.schedules`): a level ``sigma``, and latents of unit variance or on the straight path; the pipeline
keeps its own.

=====================  ==============================  ===========================  ==================================
convention             schedulers                      latents at ``step``          clean latents
=====================  ==============================  ===========================  ==================================
:class:`Discrete`      DDIM, DDPM, PNDM, LCM, TCD,     ``alpha x0 + std noise``;    from epsilon, v or sample
                       DPM++, UniPC, DEIS, SA;         Euler and its kin:
                       Euler, Heun, LMS, KDPM2         ``x0 + sigma noise``
:class:`Flow`          FlowMatch*, and DPM++, UniPC    ``(1 - s) x0 + s noise``     ``x - s v``
                       with flow sigmas
:class:`Elucidated`    EDM*, FlowMatch above level 1   ``x0 + sigma noise``         preconditioned, or ``x - sigma v``
:class:`Trigonometric` SCM (arXiv:2410.11081)          ``cos t x0 + sin t noise``   ``cos t x - sin t v``
=====================  ==============================  ===========================  ==================================
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from addiffusion_env.backbones.schedules import DiscreteSchedule, NoisePath, RectifiedFlow, VariancePreserving, rows
from addiffusion_env.errors import CapabilityError, ConfigError

LOWEST_ALPHA = 2.0**-24
"""Zero terminal SNR (arXiv:2305.08891) is an infinite level; diffusers' Euler scheduler clips it here."""


class Convention(ABC):
    """The parametrisation of a scheduler; see the module's table.

    Attributes:
        path: how signal and noise are mixed, in the engine's notation.
    """

    path: NoisePath

    def levels(self, scheduler: Any, times: Tensor, begin: int) -> np.ndarray:
        """The noise level at each of a plan's (m,) timesteps, and the final level: (m + 1,) float64.

        Args:
            scheduler: a scheduler whose timesteps are set.
            times: (m,) timesteps that the pipeline's loop iterates over.
            begin: index of the first of them in ``scheduler.timesteps``.
        """
        found = torch.as_tensor(scheduler.sigmas).double().cpu().numpy()[begin : begin + len(times) + 1]
        if len(found) == len(times):  # FlowMatchHeun and others without a last one
            found = np.append(found, 0.0)
        return np.minimum(found, LOWEST_ALPHA**-0.5)

    def time_at(self, sigma: float, times: Tensor, levels: np.ndarray) -> float:
        """The timestep of a level, which may lie between those of the plan: linear in the level."""
        known = levels[: len(times)]
        numbers = times.double().cpu().numpy()
        if sigma < known[-1]:
            # Below the last level the timestep decreases to 0 in proportion.
            return float(numbers[-1] * sigma / known[-1])
        return float(np.interp(sigma, known[::-1], numbers[::-1]))

    def scale(self, sigma: float) -> float:
        """The factor that converts the engine's latents to the scheduler's."""
        return 1.0

    @abstractmethod
    def clean(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """The clean latents of (B, ...) latents ``x`` in the engine's notation and the scheduler's ``model_output``.

        Args:
            x: latents of any layout, float32.
            output: the scheduler's input, of the same shape, or with more channels (a learned variance).
            sigma: (B,) float64 levels.
        """

    def scheduler_sigma(self, sigma: float) -> float:
        """The level in the scheduler's own ``sigmas``."""
        return sigma

    def position(self, sigma: Tensor) -> Tensor:
        """Remaining share of the schedule: (B,) -> (B,) in [0, 1]."""
        return sigma.clamp(0, 1)

    def respaced(self, steps: int, spacing: str) -> np.ndarray:
        """(steps + 1,) levels of a named timestep spacing.

        Raises:
            CapabilityError: when the model has no table of training levels.
        """
        raise CapabilityError(
            f"spacing={spacing} needs a table of training noise levels, and this pipeline's scheduler has none",
            "use spacing=scheduler, the pipeline's own",
        )


class Flow(Convention):
    """Flow matching on the straight path; ``inverted`` counts levels from clean to noise (OmniGen)."""

    path = RectifiedFlow()

    def __init__(self, inverted: bool = False) -> None:
        self.inverted = inverted

    def levels(self, scheduler: Any, times: Tensor, begin: int) -> np.ndarray:
        """See :meth:`Convention.levels`."""
        found = super().levels(scheduler, times, begin)
        return 1 - found if self.inverted else found

    def clean(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """``x - sigma v``; inverted, the velocity points the other way."""
        change = rows(sigma, x) * output
        return x + change if self.inverted else x - change

    def scheduler_sigma(self, sigma: float) -> float:
        """See :meth:`Convention.scheduler_sigma`."""
        return 1 - sigma if self.inverted else sigma


class Discrete(Convention):
    """Training levels at integer timesteps.

    Args:
        schedule: the training noise levels.
        parametrisation: ``epsilon``, ``v_prediction`` or ``sample``.
        scaled: the scheduler's latents are ``x0 + sigma noise``, not of unit variance.
    """

    path = VariancePreserving()

    def __init__(self, schedule: DiscreteSchedule, parametrisation: str, scaled: bool) -> None:
        self.schedule, self.parametrisation, self.scaled = schedule, parametrisation, scaled

    def levels(self, scheduler: Any, times: Tensor, begin: int) -> np.ndarray:
        """See :meth:`Convention.levels`."""
        if getattr(scheduler, "sigmas", None) is not None:
            found = super().levels(scheduler, times, begin)
            middle = getattr(scheduler, "sigmas_interpol", None)
            if middle is not None:  # second-order steps: every other evaluation is between two levels
                between = middle.double().cpu().numpy()[begin : begin + len(found)]
                # The ancestral one names the level in the middle of a step at the step itself, the other at its end.
                inside = between[:-2:2] if hasattr(scheduler, "sigmas_down") else between[1:-1:2]
                found[1:-1:2] = np.clip(inside, found[2::2], found[:-2:2])  # equal to its end up to rounding
            return found
        return np.append(self.schedule.sigma_at(times.double().cpu().numpy()), self.schedule.final_sigma)

    def time_at(self, sigma: float, times: Tensor, levels: np.ndarray) -> float:
        """The training timestep of a level; fractional between two of them."""
        return float(self.schedule.timestep_at(torch.tensor([sigma], dtype=torch.float64))[0])

    def scale(self, sigma: float) -> float:
        """See :meth:`Convention.scale`."""
        return math.sqrt(1 + sigma**2) if self.scaled else 1.0

    def clean(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """epsilon: ``(x - std e) / alpha``; v (arXiv:2202.00512): ``alpha x - std v``; sample: the output itself."""
        if output.shape != x.shape:
            output = output[:, : x.shape[1]]  # the rest is a learned variance
        alpha, std = rows(self.path.alpha(sigma), x), rows(self.path.std(sigma), x)
        if self.parametrisation == "sample":
            return output
        if self.parametrisation == "v_prediction":
            return alpha * x - std * output
        return (x - std * output) / alpha

    def position(self, sigma: Tensor) -> Tensor:
        """Remaining share of the training timesteps."""
        return (self.schedule.timestep_at(sigma) + 1) / self.schedule.train_steps

    def respaced(self, steps: int, spacing: str) -> np.ndarray:
        """See :data:`addiffusion_env.backbones.schedules.VP_SPACINGS`."""
        return self.schedule.sigmas(steps, spacing)


class Elucidated(Convention):
    """Levels of Karras et al. 2022 (arXiv:2206.00364) without a training table; latents are ``x0 + sigma noise``.

    Args:
        preconditions: the scheduler's own ``precondition_outputs``; ``None`` for a velocity ``(x - x0) / sigma``.
    """

    path = VariancePreserving()

    def __init__(self, preconditions: Any = None) -> None:
        self.preconditions = preconditions

    def time_at(self, sigma: float, times: Tensor, levels: np.ndarray) -> float:
        """Linear in the logarithm of the level."""
        known, numbers = np.log(levels[: len(times)]), times.double().cpu().numpy()
        return float(np.interp(math.log(sigma), known[::-1], numbers[::-1]))

    def scale(self, sigma: float) -> float:
        """See :meth:`Convention.scale`."""
        return math.sqrt(1 + sigma**2)

    def clean(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """See :meth:`Convention.clean`."""
        level = rows(sigma, x)
        scaled = x * torch.sqrt(1 + level**2)
        return scaled - level * output if self.preconditions is None else self.preconditions(scaled, output, level)

    def position(self, sigma: Tensor) -> Tensor:
        """Linear in the logarithm of the level, between 0.002 and 80."""
        low, high = math.log(0.002), math.log(80)
        return ((sigma.clamp_min(1e-9).log() - low) / (high - low)).clamp(0, 1)


class Trigonometric(Convention):
    """TrigFlow: times are angles from pi/2 (noise) to 0; ``sigma = tan t``."""

    path = VariancePreserving()

    def levels(self, scheduler: Any, times: Tensor, begin: int) -> np.ndarray:
        """See :meth:`Convention.levels`."""
        angles = scheduler.timesteps.double().cpu().numpy()[begin : begin + len(times) + 1]
        return np.tan(np.clip(angles, 0, math.pi / 2 - 1e-6))

    def time_at(self, sigma: float, times: Tensor, levels: np.ndarray) -> float:
        """The angle."""
        return math.atan(sigma)

    def clean(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """``cos t x - sin t v``."""
        angle = torch.atan(sigma)
        return rows(angle.cos(), x) * x - rows(angle.sin(), x) * output

    def position(self, sigma: Tensor) -> Tensor:
        """Share of the quarter turn."""
        return torch.atan(sigma) * 2 / math.pi


class Cosine(Discrete):
    """Stable Cascade's continuous cosine schedule (DDPMWuerstchen): times in [0, 1], epsilon."""

    def __init__(self, scheduler: Any) -> None:
        grid = torch.linspace(0, 1, 1001)
        products = scheduler._alpha_cumprod(grid, torch.device("cpu")).double()
        super().__init__(DiscreteSchedule.from_alphas_cumprod(products, False, 0), "epsilon", False)

    def levels(self, scheduler: Any, times: Tensor, begin: int) -> np.ndarray:
        """See :meth:`Convention.levels`."""
        numbers = scheduler.timesteps.double().cpu().numpy()[begin : begin + len(times) + 1]
        return self.schedule.sigma_at(numbers * 1000)

    def time_at(self, sigma: float, times: Tensor, levels: np.ndarray) -> float:
        """The time in [0, 1] of a level."""
        return super().time_at(sigma, times, levels) / 1000

    def respaced(self, steps: int, spacing: str) -> np.ndarray:
        """Raises :class:`.CapabilityError`: the schedule has no table of training levels."""
        return Convention.respaced(self, steps, spacing)


def convention_of(scheduler: Any) -> Convention:
    """The convention of a scheduler whose timesteps are set.

    Raises:
        CapabilityError: for a scheduler of unknown parametrisation.
    """
    config, name = scheduler.config, type(scheduler).__name__
    kind = config.get("prediction_type", "epsilon")
    sigmas = getattr(scheduler, "sigmas", None)
    if hasattr(scheduler, "precondition_outputs"):
        return Elucidated(scheduler.precondition_outputs)
    if name.startswith("FlowMatch"):
        highest = float(torch.as_tensor(sigmas).max())
        return Elucidated() if highest > 1.5 else Flow(bool(config.get("invert_sigmas", False)))
    if kind == "flow_prediction" and sigmas is not None:
        return Flow()
    if kind == "trigflow":
        return Trigonometric()
    if hasattr(scheduler, "_alpha_cumprod"):
        return Cosine(scheduler)
    if getattr(scheduler, "alphas_cumprod", None) is not None and kind in ("epsilon", "v_prediction", "sample"):
        offset = int(config.get("steps_offset", 0))
        schedule = DiscreteSchedule.from_alphas_cumprod(scheduler.alphas_cumprod, True, offset)
        final = getattr(scheduler, "final_alpha_cumprod", None)
        if final is not None and float(final) < 1:
            schedule = replace(schedule, final_sigma=math.sqrt((1 - float(final)) / float(final)))
        elif config.get("final_sigmas_type") == "sigma_min":
            schedule = replace(schedule, final_sigma=float(np.exp(schedule.log_sigmas[0])))
        return Discrete(schedule, kind, scales_input(scheduler))
    raise CapabilityError(
        f"the noise levels of a {name} (prediction_type {kind!r}) are not known",
        "set pipe.scheduler to one of Euler, DDIM, DPM-Solver++, UniPC, LCM, TCD, FlowMatchEuler, EDM or SCM",
    )


def scales_input(scheduler: Any) -> bool:
    """Whether a scheduler's latents are ``x0 + sigma noise``, so that it scales the network's input."""
    if getattr(scheduler, "sigmas", None) is None:
        return False
    trial = copy.copy(scheduler)
    one = torch.ones(1)
    return not torch.equal(trial.scale_model_input(one, trial.timesteps[0]).cpu(), one)


def check_plan(levels: np.ndarray, scheduler: Any) -> np.ndarray:
    """Refuses a plan whose levels are not decreasing.

    Raises:
        ConfigError: with the scheduler's name and the levels.
    """
    if not np.isfinite(levels).all() or (np.diff(levels) > 1e-9).any():
        raise ConfigError(
            f"noise levels of the {type(scheduler).__name__} do not decrease: {np.round(levels, 4).tolist()[:8]}",
            "use more steps, or another scheduler",
        )
    return levels

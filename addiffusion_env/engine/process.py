"""The decision process as configuration: what the three actions do to a lane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Annotated, ClassVar

import numpy as np

from addiffusion_env.backbones.base import Backbone, Capabilities
from addiffusion_env.backbones.solvers import SCHEDULER
from addiffusion_env.errors import CapabilityError, ConfigError, unknown
from addiffusion_env.scorers.utility import Utility
from addiffusion_env.settings import Ge, Settings

MAPS = ("attention", "phrase", "none")
REGIONS = ("token", "weakest", "union", "whole")
ACCEPT = ("always", "score", "best")


class Action(IntEnum):
    """The three actions."""

    CONTINUE = 0
    STOP = 1
    REFINE = 2


@dataclass(frozen=True)
class RefineConfig(Settings):
    """What the action *refine* does.

    The region is re-noised to a level between the lane's current one and the start of the schedule, denoised back to
    the current level in ``steps`` evaluations (each counted), and the result is kept or discarded.

    Attributes:
        enabled: whether the action is ever legal.
        maps: source of the region: ``attention`` of the prompt's content tokens (one evaluation), ``phrase``
            differences |x0(prompt) - x0(prompt without the phrase)| (half an evaluation per phrase plus one half),
            ``none`` for the whole image.
        region: ``token`` (all content tokens), ``weakest`` (the phrase with the least effect), ``union`` (all
            phrases) or ``whole``.
        renoise: fraction of the completed schedule that is undone: 0 stays at the current level, 1 is fresh noise.
        steps: k, evaluations from there back to the current level; ``"schedule"`` repeats the steps of the schedule.
        fraction: fraction of the latent cells that a region covers before blurring, in (0, 1].
        blur: standard deviation of the Gaussian blur of the mask, in latent cells.
        accept: ``always``; ``score``: keep the result only if its preview's preference exceeds the previous one by at
            least ``margin``; or ``best``: continue with the result, and return the finished image of highest utility
            at the end of the episode (with :attr:`ProcessConfig.check_finished`).
        margin: in standard deviations of preference; may be negative.
        utility: ranks finished images under ``accept=best``; see :class:`addiffusion_env.scorers.utility.Utility`.
        return_to: step of the schedule at which a whole-image refinement returns control to the policy, so that a new
            attempt can be abandoned as early as the first one; 0 for fresh noise before the first evaluation, where the
            policy decides about every attempt as it did about the first; ``None`` for the step at which it was taken.
        limit: maximum number of refinements in an episode.
        first_step: first step of the schedule at which the action is legal; at least 1, since there is no clean
            prediction before.
    """

    section: ClassVar[str] = "refine"

    enabled: bool = True
    maps: str = "attention"
    region: str = "token"
    renoise: float = 0.3
    steps: Annotated[int | str, Ge(1)] = 2
    fraction: float = 0.35
    blur: Annotated[float, Ge(0)] = 1.0
    accept: str = "always"
    margin: float = 0.0
    utility: Utility = field(default_factory=Utility)
    return_to: Annotated[int | None, Ge(0)] = None
    limit: Annotated[int, Ge(0)] = 4
    first_step: Annotated[int, Ge(1)] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for value, known, kind in (
            (self.maps, MAPS, "refine.maps"),
            (self.region, REGIONS, "refine.region"),
            (self.accept, ACCEPT, "refine.accept"),
        ):
            if value not in known:
                raise unknown(kind, value, known)
        wanted = {"token": "attention", "weakest": "phrase", "union": "phrase", "whole": "none"}[self.region]
        if self.maps != wanted:
            raise ConfigError(
                f"refine.region={self.region} needs refine.maps={wanted}, got {self.maps}", f"set maps={wanted}"
            )
        if not 0 <= self.renoise <= 1:
            raise ConfigError(
                f"refine.renoise must be in [0, 1], got {self.renoise}", "0 adds no noise, 1 starts from fresh noise"
            )
        if not 0 < self.fraction <= 1:
            raise ConfigError(
                f"refine.fraction must be in (0, 1], got {self.fraction}", "0.35 covers a third of the image"
            )
        if isinstance(self.steps, str) and self.steps != "schedule":
            raise ConfigError(f"refine.steps must be a number or 'schedule', got {self.steps!r}", "use 2, or schedule")
        if self.return_to is not None and (self.region != "whole" or self.renoise != 1 or self.steps != "schedule"):
            raise ConfigError(
                f"refine.return_to={self.return_to} needs a whole-image resample (region=whole, renoise=1, "
                f"steps=schedule), got region={self.region}, renoise={self.renoise:g}, steps={self.steps}",
                "use refine preset=resample_keep_best, or leave return_to out",
            )
        if self.return_to == 0 and self.accept == "score":
            raise ConfigError(
                "refine.accept=score compares two previews, and refine.return_to=0 returns before there is one",
                "use refine.accept=best, or return_to at the first decision step",
            )


REFINE_PRESETS: dict[str, RefineConfig] = {
    # As in the proposal: cross-attention of the content tokens, blurred, k = 2.
    "as_published": RefineConfig(),
    # A new attempt: fresh noise, and all steps of the schedule up to the current one again.
    "resample": RefineConfig(maps="none", region="whole", renoise=1.0, steps="schedule", accept="always"),
    # The same, but the policy decides about the new attempt from the third step on, wherever the previous one was
    # abandoned, and the best of all finished attempts is returned.
    "resample_keep_best": RefineConfig(
        maps="none", region="whole", renoise=1.0, steps="schedule", accept="best", return_to=3, limit=6
    ),
    # A short new attempt: the whole image from fresh noise, two evaluations back to the current level.
    "resample_short": RefineConfig(maps="none", region="whole", renoise=1.0, accept="always"),
    # The region of the phrase with the least effect, re-noised half-way, kept if it scores better.
    "weakest": RefineConfig(maps="phrase", region="weakest", renoise=0.5, accept="score"),
    "union": RefineConfig(maps="phrase", region="union", renoise=1.0, accept="score"),
    "off": RefineConfig(enabled=False, maps="none", region="whole"),
}


@dataclass(frozen=True)
class ProcessConfig(Settings):
    """The transition dynamics of a lane.

    Attributes:
        steps: evaluations of the full schedule.
        spacing: timestep spacing of that schedule.
        solver: name in :data:`backbones.solvers.SOLVERS`, or ``"scheduler"``, the pipeline's own.
        guidance_scale: classifier-free guidance scale; 1 or less disables guidance, as in diffusers.
        guidance_interval: ``(low, high)`` noise levels: evaluations at ``low < sigma <= high`` are guided, others use
            the conditional prediction alone at half the cost (Kynkaanniemi et al. 2024, arXiv:2404.07724). ``None``
            guides all.
        early_exit_steps: evaluations that *stop* spends, or ``"auto"``; see :mod:`addiffusion_env.backbones.schedules`.
        decide_every: evaluations of one *continue*.
        decide_at: steps of the schedule at which the policy decides, instead; *continue* runs to the next of them.
        check_finished: show the policy the finished image before the episode ends, whichever action finished it:
            *stop* accepts it, *refine* starts a new attempt, *continue* is illegal.
        refine: what *refine* does.
        network_calls: network calls per evaluation, (without guidance, with guidance); see :class:`Capabilities`.
        evaluations: evaluations of the schedule, which ``decide_at`` and ``decide_every`` count; ``None`` for one each
            step. A second-order scheduler takes 2n - 1 of n steps, an image-to-image pipeline fewer than n.
    """

    not_identity: ClassVar[tuple[str, ...]] = ("evaluations",)  # the scheduler and the arguments decide them

    steps: Annotated[int, Ge(1)] = 20
    spacing: str = "trailing"
    solver: str = "ddim"
    guidance_scale: float = 4.0
    guidance_interval: tuple[float, float] | None = None
    early_exit_steps: Annotated[int | str, Ge(0)] = "auto"
    decide_every: Annotated[int, Ge(1)] = 1
    decide_at: tuple[int, ...] | None = None
    check_finished: bool = False
    refine: RefineConfig = field(default_factory=RefineConfig)
    network_calls: tuple[int, int] = (1, 2)
    evaluations: Annotated[int | None, Ge(1)] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise ConfigError(
                f"guidance_scale must be a number of 0 or more, got {self.guidance_scale}",
                "1 or less disables guidance",
            )
        # Turbo and Lightning models are called with 0 for "off".
        object.__setattr__(self, "guidance_scale", max(1.0, self.guidance_scale))
        if isinstance(self.early_exit_steps, str) and self.early_exit_steps != "auto":
            raise ConfigError(
                f"early_exit_steps must be a number or 'auto', got {self.early_exit_steps!r}", "use 4, or auto"
            )
        if self.guidance_interval is not None and not 0 <= self.guidance_interval[0] <= self.guidance_interval[1]:
            raise ConfigError(
                f"guidance_interval must be [low, high] with 0 <= low <= high, got {list(self.guidance_interval)}",
                "noise levels; null guides every evaluation",
            )
        if self.decide_at is not None:
            self._check_decisions(self.decide_at)
        if self.refine.accept == "best" and not self.check_finished:
            raise ConfigError(
                "refine.accept=best chooses among finished images, and check_finished is false",
                "set check_finished=true, or refine.accept=always",
            )
        if self.refine.enabled and self.refine.return_to is not None and self.refine.return_to >= self._most:
            raise ConfigError(
                f"refine.return_to={self.refine.return_to} is not before the end of a schedule of {self._most} steps",
                f"set it to {self._most - 1} or less",
            )

    def _check_decisions(self, at: tuple[int, ...]) -> None:
        inside = all(isinstance(step, int) and 1 <= step < self._most for step in at)
        if not at or not inside or list(at) != sorted(set(at)):
            raise ConfigError(
                f"decide_at must be increasing steps from 1 to {self._most - 1}, got {list(at)}",
                "for example [3, 5]",
            )
        if self.decide_every != 1:
            raise ConfigError(
                f"decide_at={list(at)} and decide_every={self.decide_every} were both given",
                "set decide_every=1 beside decide_at, also where the environment's id sets another",
            )

    def scale_at(self, sigma: float) -> float:
        """Guidance scale of an evaluation at a noise level; 1 outside the interval.

        >>> config = ProcessConfig(guidance_scale=4, guidance_interval=(2.0, 6.0))
        >>> config.scale_at(14.6), config.scale_at(5.9), config.scale_at(2.0)
        (1.0, 4, 1.0)
        """
        if self.guidance_interval is None:
            return self.guidance_scale
        low, high = self.guidance_interval
        return self.guidance_scale if low < sigma <= high else 1.0

    def nfe_of(self, sigmas: Sequence[float] | np.ndarray) -> float:
        """Total NFE of one evaluation at each of the given noise levels.

        >>> ProcessConfig(guidance_scale=4, guidance_interval=(2.0, 6.0)).nfe_of([14.6, 5.9, 2.9, 1.6])
        3.0
        """
        return self.cost(self.calls_of(sigmas))[0]

    def calls_of(self, sigmas: Sequence[float] | np.ndarray) -> int:
        """Total network calls of one evaluation at each of the given noise levels."""
        return sum(self.network_calls[self.scale_at(float(sigma)) != 1] for sigma in sigmas)

    def decides(self, step: int) -> bool:
        """Whether the policy decides after ``step`` steps of the schedule."""
        return step % self.decide_every == 0 if self.decide_at is None else step in self.decide_at

    def counted(self, backbone: Backbone) -> ProcessConfig:
        """With a backbone's evaluations where they are more than the steps; fewer need no other places."""
        evaluations = len(backbone.sigmas(self.steps, self.spacing)) - 1
        return replace(self, evaluations=evaluations) if evaluations > self.steps else self

    @property
    def length(self) -> int:
        """Number of evaluations of the schedule."""
        return self.evaluations or self.steps

    @property
    def _most(self) -> int:
        """Of a shorter schedule than its steps, places beyond the end are never met."""
        return max(self.steps, self.length)

    @property
    def decision_steps(self) -> tuple[int, ...]:
        """Steps of the schedule at which the policy decides, between the first evaluation and the end.

        >>> ProcessConfig(steps=6, decide_every=2).decision_steps
        (2, 4)
        """
        return tuple(step for step in range(1, self.length) if self.decides(step))

    @property
    def longest_episode(self) -> int:
        """Maximum number of decisions in an episode: every step and every refinement."""
        decisions, refine = len(self.decision_steps) + 1, self.refine
        if not refine.enabled:
            return decisions
        back = refine.return_to
        repeated = 0 if back is None else sum(step > back for step in self.decision_steps) + 1
        return decisions + refine.limit * (1 + repeated)

    def cost(self, calls: int) -> tuple[float, int]:
        """(NFE, network calls) of ``calls`` network calls, where one (guided) evaluation of the schedule is 1 NFE.

        >>> ProcessConfig(guidance_scale=4).cost(1), ProcessConfig(guidance_scale=1).cost(1)
        ((0.5, 1), (1.0, 1))
        """
        return calls / self.network_calls[self.guidance_scale != 1], calls

    def check(self, capabilities: Capabilities, backbone: str) -> None:
        """Checks that the backbone supports this configuration.

        Raises:
            CapabilityError: if it does not; names the setting and a supported value.
        """
        if self.guidance_scale != 1 and not capabilities.guidance:
            raise CapabilityError(
                f"backbone {backbone!r} has no guidance, got guidance_scale={self.guidance_scale}", "set it to 1"
            )
        own = capabilities.default_solver == SCHEDULER
        if not own and SCHEDULER in (self.solver, self.spacing):
            setting = "solver" if self.solver == SCHEDULER else "spacing"
            raise CapabilityError(
                f"backbone {backbone!r} has no diffusers scheduler, got {setting}={SCHEDULER}",
                f"use {setting}={capabilities.default_solver if setting == 'solver' else capabilities.default_spacing}",
            )
        if own and self.solver == SCHEDULER and self.spacing != SCHEDULER:
            raise CapabilityError(
                f"spacing={self.spacing} would not take effect: solver=scheduler keeps the scheduler's timesteps",
                f"set solver=ddim together with spacing={self.spacing}, or set the spacing on pipe.scheduler",
            )
        if self.refine.enabled and self.refine.region != "whole" and not capabilities.masks:
            raise CapabilityError(
                f"the latents of backbone {backbone!r} have no spatial layout, so no region can be refined",
                "use refine=resample",
            )
        if self.refine.enabled and self.refine.maps == "attention" and capabilities.attention_grid is None:
            raise CapabilityError(
                f"backbone {backbone!r} has no attention maps for refine", "use refine=weakest or refine=resample_short"
            )

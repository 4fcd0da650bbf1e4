"""A functional interface to a pipeline's own scheduler: its plan, and one step of one lane."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from addiffusion_env.backbones.calls.joining import Digests
from addiffusion_env.backbones.calls.open_call import AtStep, OpenCall
from addiffusion_env.backbones.calls.stand_ins import copied, plain_scheduler, scheduler_values
from addiffusion_env.backbones.conventions import Convention, check_plan, convention_of
from addiffusion_env.backbones.fingerprint import LruCache

LEVELS_KEPT = 4096
"""Maximum number of cached level positions of a plan."""

PLANS_KEPT = 64
"""Maximum number of cached plans."""

LEVEL_TOLERANCE = 1e-6
"""Relative tolerance of equal levels: schedulers store theirs in single precision."""


@dataclass(frozen=True, eq=False)
class SchedulerPlan:
    """The schedule set by the prologue of a pipeline's call; equal plans are one object (:class:`Plans`).

    Attributes:
        scheduler: a copy of the scheduler with timesteps set; never stepped.
        convention: parametrisation of the scheduler.
        times: (m,) the denoiser's timestep at each evaluation.
        levels: (m + 1,) float64, their noise levels and the final level.
        begin: index of the first timestep in ``scheduler.timesteps``.
    """

    scheduler: Any
    convention: Convention
    times: Tensor
    levels: np.ndarray
    begin: int
    _known: dict[float, tuple[int, Any, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, call: OpenCall) -> SchedulerPlan:
        """The plan of a call that is in its loop.

        Raises:
            CapabilityError: for a scheduler whose noise levels are not known.
            ConfigError: for levels that are not decreasing.
        """
        assert call.times is not None
        scheduler = plain_scheduler(call.scheduler)
        # State that the first evaluation has set is set again by the first step.
        convention = convention_of(scheduler)
        levels = check_plan(convention.levels(scheduler, call.times, call.begin), scheduler)
        return cls(scheduler, convention, call.times, levels, call.begin)

    def at(self, sigma: float) -> tuple[int, Any, float]:
        """(index, timestep, the scheduler's own level) of the evaluation at a level."""
        found = self._known.get(sigma)
        if found is None:
            index = self.index_of(sigma)
            found = (index, self.time_of(index, sigma), self.convention.scheduler_sigma(sigma))
            if len(self._known) < LEVELS_KEPT:
                self._known[sigma] = found
        return found

    def index_of(self, sigma: float) -> int:
        """Index of the plan's evaluation that a level belongs to: the last one at or above it."""
        at = int(np.searchsorted(-self.levels[:-1], -sigma * (1 - LEVEL_TOLERANCE), side="right")) - 1
        first = max(0, at)
        # The first of equal levels (second-order schedulers).
        while first > 0 and self.levels[first - 1] == self.levels[first]:
            first -= 1
        return first

    def time_of(self, index: int, sigma: float) -> Any:
        """The denoiser's timestep at a level: the plan's own if the level belongs to it."""
        if abs(self.levels[index] - sigma) <= LEVEL_TOLERANCE * max(1.0, sigma):
            return self.times[index]
        time = self.convention.time_at(sigma, self.times, self.levels)
        dtype = self.times.dtype if self.times.is_floating_point() else torch.float32
        return torch.tensor(time, dtype=dtype, device=self.times.device)

    def on_plan(self, index: int, sigma: float, sigma_next: float) -> bool:
        """Whether a step leads from an evaluation of the plan to the next one."""
        now, then = self._numbers[index], self._numbers[index + 1]
        starts = abs(now - sigma) <= LEVEL_TOLERANCE * max(1, now)
        return starts and abs(then - sigma_next) <= LEVEL_TOLERANCE * max(1, then)

    @functools.cached_property
    def _numbers(self) -> list[float]:
        return self.levels.tolist()

    def step(self, state: Mapping[str, Any] | None, index: int, at: AtStep) -> tuple[Tensor, dict[str, Any]] | None:
        """One step of the pipeline's own scheduler.

        Args:
            state: state from the previous :meth:`step`, or :meth:`first`; ``None`` to enter the plan at ``index``.
            index: index of the plan's evaluation.
            at: the arguments of the scheduler's step.

        Returns:
            (the latents, the state afterwards); ``None`` if this scheduler cannot enter its plan there.
        """
        scheduler = object.__new__(type(self.scheduler))
        scheduler.__dict__.update(scheduler_values(self.scheduler))
        generator = None
        if state is not None and state["index"] == index:
            scheduler.__dict__.update({name: copied(value) for name, value in state["values"].items()})
        elif (index or self.begin) and not self._enters(scheduler, self.begin + index):
            warnings.warn(
                f"a {type(scheduler).__name__} cannot enter its plan in the middle: after a refinement or early exit "
                "images continue with first-order steps (solver=ddim)",
                stacklevel=3,
            )
            return None
        if state is not None and state["generator"] is not None:
            generator = torch.Generator()
            generator.set_state(state["generator"])
        kwargs = dict(at.kwargs)
        kind: Any = type(scheduler)
        if _takes_generator(kind):
            kwargs["generator"] = generator
        result = scheduler.step(at.output, at.time, at.sample, *at.args, **kwargs)
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        values = {
            name: value
            for name, value in scheduler_values(scheduler).items()
            if value is not self.scheduler.__dict__.get(name, _MISSING) and not name.startswith("_internal")
        }
        return latents, {
            "index": index + 1,
            "values": values,
            "generator": None if generator is None else generator.get_state(),
        }

    def first(self, generator_state: Tensor | None) -> dict[str, Any]:
        """The state before the plan's first step."""
        return {"index": 0, "values": {}, "generator": generator_state}

    def _enters(self, scheduler: Any, index: int) -> bool:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(index)
            scheduler._step_index = None
            return True
        # A scheduler without a step index is either a function of its timesteps (DDIM) or counts calls (PNDM).
        return not hasattr(scheduler, "ets")


class Plans:
    """The plans of one pipeline's calls.

    Args:
        digests: hashes schedulers' attributes into keys.
    """

    def __init__(self, digests: Digests) -> None:
        self.digests = digests
        self._known: LruCache[SchedulerPlan] = LruCache(PLANS_KEPT)

    def of(self, call: OpenCall) -> SchedulerPlan:
        """The plan of a call that is in its loop; see :meth:`SchedulerPlan.of`."""
        assert call.times is not None
        scheduler = call.scheduler
        key = (type(scheduler), call.begin, self.digests(call.times), self.digests(scheduler_values(scheduler)))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = SchedulerPlan.of(call)
        return known


_MISSING = object()


@functools.cache
def _takes_generator(kind: type) -> bool:
    return "generator" in inspect.signature(kind.step).parameters  # type: ignore[attr-defined]

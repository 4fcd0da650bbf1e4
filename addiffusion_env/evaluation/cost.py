"""Cost estimate of an evaluation before it starts: images, evaluations, minutes on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lanes import lanes_of
from addiffusion_env.evaluation.runner import EvaluationContext, Plan
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.fixed import FixedSteps


@dataclass(frozen=True)
class PlanCost:
    """The remaining work of a plan.

    Attributes:
        images: number of images of all samplers.
        to_make: number of images that are not recorded yet.
        least: NFE of these when no sampler makes a second attempt.
        most: NFE when every sampler makes all its attempts. A policy counts its NFE on training prompts in both.
        pace: seconds per guided evaluation with all lanes busy; NaN when not measured.
    """

    images: int
    to_make: int
    least: float
    most: float
    pace: float

    def __str__(self) -> str:
        count = f"{self.images} images, {self.to_make} of them to be generated"
        if not self.to_make:
            return f"plan: {count}"
        few, many = (nfe * self.pace / 60 for nfe in (self.least, self.most))
        nfe = f"{self.least:,.0f}" if self.least == self.most else f"{self.least:,.0f} to {self.most:,.0f}"
        time_words = f"{few:.1f} to {many:.1f} minutes" if many > few else f"{few:.1f} minutes"
        return f"plan: {count}; {nfe} NFE, {time_words} at {1000 * self.pace:.0f} ms an evaluation (measured now)"


def plan_cost(
    plans: Sequence[Plan], context: EvaluationContext, waiting: Sequence[int], max_lanes: int | str
) -> PlanCost:
    """Counts the remaining work of a plan, and measures the speed of this machine.

    Args:
        plans: of :func:`addiffusion_env.evaluation.runner.plan`.
        context: what they run on.
        waiting: number of missing images of each plan, by :func:`addiffusion_env.evaluation.runner.to_make`.
        max_lanes: number of images in progress at once.
    """
    ranges = [nfe_range(entry, context) for entry in plans]
    least, most = (sum(n * pair[end] for n, pair in zip(waiting, ranges, strict=True)) for end in (0, 1))
    prompts = [job.prompt for job in plans[0].jobs[: lanes_of(max_lanes, "max_lanes")[0]]]
    pace = measured_pace(context, prompts) if any(waiting) else float("nan")
    return PlanCost(sum(len(entry.jobs) for entry in plans), sum(waiting), least, most, pace)


def nfe_range(entry: Plan, context: EvaluationContext) -> tuple[float, float]:
    """(least, most) NFE of one image of a sampler: with one attempt and with all; for a policy its measured NFE."""
    spends = getattr(entry.sampler, "expected_nfe", None)
    if spends is not None:
        return (spends, spends)
    process = entry.process
    once = process.nfe_of(context.backbone.sigmas(process.steps, process.spacing)[:-1])
    least, most = getattr(entry.sampler, "attempt_counts", (1, 1))
    return once * least, once * most


def measured_pace(context: EvaluationContext, prompts: Sequence[Prompt], steps: int = 2) -> float:
    """Seconds per guided evaluation: all prompts in one batch, ``steps`` each, after one warm-up."""
    sampler = FixedSteps(steps)
    process = sampler.process(context.process)
    engine = Engine(context.backbone, context.scorers, solver=process.solver, decider=sampler.decide)

    def seconds() -> float:
        begun = time.perf_counter()
        engine.run(sampler.coroutine(context.backbone, process, prompt, 0) for prompt in prompts)
        return time.perf_counter() - begun

    seconds()
    return seconds() / (steps * len(prompts))

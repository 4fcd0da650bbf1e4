"""The three actions as coroutines, each written for a single lane; the engine runs many of them in lockstep."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.batches import OFF_PLAN, Latents, evolved
from addiffusion_env.engine.lane import (
    Evaluate,
    Finish,
    Lane,
    Outcome,
    Request,
    ScorePreview,
    after_evaluation,
    relative_change,
)
from addiffusion_env.engine.process import Action, ProcessConfig
from addiffusion_env.scorers.image_scores import GeneratedImage
from addiffusion_env.scorers.utility import Utility

LaneCoroutine = Generator[Request, Any, Lane]


def may_refine(lane: Lane, process: ProcessConfig) -> bool:
    """Whether *refine* is legal: it needs a clean prediction, steps left in the schedule, and refinements left."""
    refine = process.refine
    return (
        refine.enabled
        and lane.x0 is not None
        and (len(lane.rest) > 1 or lane.shown is not None)
        and lane.step >= refine.first_step
        and lane.refinements < refine.limit
    )


def legal_actions(lanes: Sequence[Lane], process: ProcessConfig) -> np.ndarray:
    """(B, 3) bool: which of continue, stop, refine are legal in each lane.

    A finished image that the policy is shown (``check_finished``) can be accepted (*stop*) or replaced by a new attempt
    (*refine*).
    """
    return np.array([(len(lane.rest) > 1, True, may_refine(lane, process)) for lane in lanes])


def env_step(
    backbone: Backbone, process: ProcessConfig, lane: Lane, action: int, looks: bool = True
) -> Generator[Request, Any, tuple[Lane, GeneratedImage | None]]:
    """Carries out one decision.

    Args:
        backbone: the model.
        process: what the actions do.
        lane: the lane at the decision.
        action: a legal action.
        looks: whether previews are scored; finished images always are.

    Returns:
        The lane at its next decision, and the finished image once the episode has ended (otherwise ``None``).
    """
    if lane.shown is not None and action == Action.STOP:
        return ended(process, evolved(lane, actions=(*lane.actions, int(action))), lane.shown)
    lane = yield from act(backbone, process, lane, action)
    if lane.remaining:
        if looks and lane.scores is None and lane.x0 is not None:
            lane = yield from score_preview(lane)
        return lane, None
    image = yield from finished(lane, process.refine.utility if process.refine.accept == "best" else None)
    lane = evolved(lane, scores=image.scores)
    waiting = evolved(lane, shown=image)
    if process.check_finished and may_refine(waiting, process):
        return waiting, None
    return ended(process, lane, image)


def ended(process: ProcessConfig, lane: Lane, image: GeneratedImage) -> tuple[Lane, GeneratedImage]:
    """The end of an episode: its image is ``image``, or with ``accept=best`` an earlier one of higher utility."""
    chosen = better(process.refine.utility, lane.best, image) if process.refine.accept == "best" else image
    return evolved(lane, scores=chosen.scores, shown=None, best=None), chosen


def better(utility: Utility, kept: GeneratedImage | None, new: GeneratedImage) -> GeneratedImage:
    """The finished image of higher utility; the earlier one on a tie."""
    if kept is None:
        return new
    old, fresh = (image.scores.utility(utility) if image.utility is None else image.utility for image in (kept, new))
    return kept if old >= fresh else new


def act(backbone: Backbone, process: ProcessConfig, lane: Lane, action: int) -> LaneCoroutine:
    """Takes one legal action; the returned lane is fully denoised when ``lane.remaining`` is 0."""
    lane = evolved(lane, actions=(*lane.actions, int(action)))
    if action == Action.STOP:
        return (yield from exit_early(backbone, process, lane))
    if action == Action.REFINE:
        return (yield from refine(backbone, process, lane))
    while True:
        lane = yield from advance(process, lane)
        if lane.remaining == 0 or process.decides(lane.step):
            return lane


def advance(process: ProcessConfig, lane: Lane) -> LaneCoroutine:
    """One step of the schedule."""
    # The last step is first order, as with diffusers' lower_order_final.
    outcome = yield ask(process, lane, lane.latents, float(lane.rest[1]), lane.remaining == 1, lane.sigma)
    return after_evaluation(lane, outcome, lane.rest[1:], process.cost(outcome.calls), lane.step + 1)


def exit_early(backbone: Backbone, process: ProcessConfig, lane: Lane) -> LaneCoroutine:
    """Re-spaces the rest of the schedule into a few evaluations and takes them; with zero, jumps to predicted x0."""
    levels = backbone.early_exit_levels(lane.rest, process.early_exit_steps)
    if len(levels) == 1 and lane.remaining > 0:
        if lane.x0 is None:  # there is no prediction yet: one evaluation is needed
            lane = yield from advance(process, lane)
        assert lane.x0 is not None
        return evolved(lane, latents=replace(lane.latents, x=lane.x0), rest=lane.rest[-1:])
    lane = evolved(lane, rest=levels)
    while lane.remaining:
        lane = yield from advance(process, lane)
    return lane


def refine(backbone: Backbone, process: ProcessConfig, lane: Lane) -> LaneCoroutine:
    """Re-noises a region, denoises it to the current level, and keeps or discards the result (:class:`RefineConfig`).

    A rejected result is charged as well.
    """
    config = process.refine
    if lane.shown is not None:
        best = better(config.utility, lane.best, lane.shown) if config.accept == "best" else None
        lane = evolved(lane, shown=None, best=best)
    lane = evolved(lane, refinements=lane.refinements + 1)
    lane, mask = yield from region(backbone, process, lane)
    refined = yield from regenerate(backbone, process, lane, mask)
    if mask is not None:
        masks = (*lane.masks, mask[0, 0].float().cpu().numpy())
        lane, refined = evolved(lane, masks=masks), evolved(refined, masks=masks)
    if config.accept != "score":
        return refined
    if lane.scores is None:
        lane = yield from score_preview(lane)
    refined = yield from score_preview(refined)
    assert lane.scores is not None and refined.scores is not None
    if float(refined.scores.preference[0]) >= float(lane.scores.preference[0]) + config.margin:
        return refined
    return evolved(lane, nfe=refined.nfe, calls=refined.calls)


def regenerate(backbone: Backbone, process: ProcessConfig, lane: Lane, mask: Tensor | None) -> LaneCoroutine:
    """The inner loop of a refinement: k evaluations from the re-noised level back to the lane's current one.

    Inside the mask the image is regenerated; outside, the old trajectory at the same noise level is restored after
    every evaluation, as in RePaint (arXiv:2201.09865, equation 8), so that it is unchanged in the end.
    """
    path, x_old = backbone.path, lane.latents.x
    assert lane.x0 is not None
    levels, rest, step = refine_levels(backbone, process, lane)
    stream = f"refine-{lane.refinements - 1}"
    # renoise=1 begins from pure noise, as a new seed would; below 1, noise is added to the clean prediction.
    if process.refine.renoise == 1:
        latents, _ = backbone.draw(lane.prompt, lane.seed, process.steps, process.spacing, stream)
        if len(levels) == 1:  # return_to=0: the lane is again as it was before the first evaluation
            return evolved(lane, latents=latents, rest=rest, step=step, x0=None, scores=None, change=0.0, features=None)
        x = latents.x
    at = [torch.tensor([level], dtype=torch.float64) for level in levels]
    if process.refine.renoise != 1:
        x = path.mix(lane.x0, lane.noise(stream), at[0])
        latents = lane.latents.renewed(x, at[0])
    if mask is not None:
        old_noise = path.noise_of(x_old, lane.x0, at[-1])
        x = mask * x + (1 - mask) * path.mix(lane.x0, old_noise, at[0])
        latents = latents.renewed(x, at[0])
    refined = lane
    for level, following in zip(levels[1:], at[1:], strict=True):
        outcome: Outcome = yield ask(process, refined, latents, float(level))
        if mask is not None:
            assert refined.x0 is not None
            x = mask * outcome.latents.x + (1 - mask) * path.mix(lane.x0, old_noise, following)
            x0 = mask * outcome.x0 + (1 - mask) * lane.x0
            change = float(relative_change(x0, refined.x0))
            outcome = outcome._replace(latents=outcome.latents.renewed(x, following), x0=x0, change=change)
        latents = outcome.latents
        refined = after_evaluation(refined, outcome, rest, process.cost(outcome.calls), lane.step)
    scheduler = latents.history.scheduler[0]
    if mask is None and scheduler is not None and scheduler["index"] != OFF_PLAN:
        return evolved(refined, step=step)  # the pipeline's scheduler is on its timesteps, and its history is kept
    return evolved(refined, latents=latents.renewed(latents.x, at[-1]), step=step)


def refine_levels(backbone: Backbone, process: ProcessConfig, lane: Lane) -> tuple[np.ndarray, np.ndarray, int]:
    """The noise levels of a refinement.

    Returns:
        (k + 1,) noise levels from the re-noised level to the final one (the lane's current level, or ``return_to``);
        the remaining levels of the schedule after the refinement; and the number of its steps done by then.
    """
    config = process.refine
    full = backbone.sigmas(process.steps, process.spacing) if lane.levels is None else lane.levels
    if config.return_to is not None:
        # An image-to-image pipeline begins in the middle of its schedule: a lane may have fewer steps than the process.
        to = min(config.return_to, len(full) - 2)
        return full[: to + 1], full[to:], to
    done = full[full > lane.sigma * (1 + 1e-9)]
    levels = np.append(done, lane.sigma)  # from the start of the schedule to the current level
    start = (1 - config.renoise) * (len(levels) - 1)
    steps = max(1, round(len(levels) - 1 - start)) if isinstance(config.steps, str) else config.steps
    positions = np.linspace(start, len(levels) - 1, steps + 1)
    return np.exp(np.interp(positions, np.arange(len(levels)), np.log(levels))), lane.rest, lane.step


def region(
    backbone: Backbone, process: ProcessConfig, lane: Lane
) -> Generator[Request, Any, tuple[Lane, Tensor | None]]:
    """Finds the region to regenerate: a (1, 1, H, W) mask in [0, 1] at the latents' resolution, ``None`` for all."""
    config = process.refine
    size = (int(lane.latents.x.shape[-2]), int(lane.latents.x.shape[-1]))
    if config.region == "whole":
        return lane, None
    from addiffusion_env.engine.regions import attention_mask, pick_phrase

    if config.maps == "attention":
        request = ask(process, lane, lane.latents, None)
        outcome: Outcome = yield request._replace(capture=True)
        lane = charged(process, lane, outcome)
        assert outcome.attention is not None
        positions = lane.conditioning.content[0]
        return lane, attention_mask(outcome.attention[0], positions, config.fraction, config.blur, size)
    lane, maps = yield from phrase_maps(backbone, process, lane)
    return lane, pick_phrase(maps, config, size)


def phrase_maps(backbone: Backbone, process: ProcessConfig, lane: Lane) -> Generator[Request, Any, tuple[Lane, Tensor]]:
    """(P, H, W): effect of each phrase, ``|x0(prompt) - x0(prompt without the phrase)|``, mean over channels."""
    from addiffusion_env.engine.regions import evidence_of, phrases_of, without

    request = ask(process, lane, lane.latents, None)._replace(guidance_scale=1.0)
    whole: Outcome = yield request
    lane = charged(process, lane, whole)
    maps = []
    for phrase in phrases_of(lane.prompt):
        conditioning = backbone.rephrased(lane.conditioning, without(lane.prompt.text, phrase))
        other: Outcome = yield request._replace(conditioning=conditioning)
        lane = charged(process, lane, other)
        maps.append((whole.x0 - other.x0).abs().mean(1)[0])
    stacked = torch.stack(maps)
    return evolved(lane, evidence=evidence_of(stacked)), stacked


def score_preview(lane: Lane) -> LaneCoroutine:
    """The lane with the scores of its last clean prediction."""
    assert lane.x0 is not None
    scores = yield ScorePreview(lane.x0, lane.prompt)
    return evolved(lane, scores=scores)


def finished(lane: Lane, utility: Utility | None = None) -> Generator[Request, Any, GeneratedImage]:
    """The finished image of a fully denoised lane, with its ``utility`` if one is given."""
    return (yield Finish(lane.latents.x, lane.prompt, lane.conditioning, utility))


def ask(
    process: ProcessConfig,
    lane: Lane,
    latents: Latents,
    sigma_next: float | None,
    last: bool = False,
    sigma: float | None = None,
) -> Evaluate:
    """The guided evaluation of ``latents`` under the lane's prompt; ``sigma`` is their level where it is known."""
    scale = process.scale_at(float(latents.sigma[0]) if sigma is None else sigma)
    return Evaluate(latents, lane.conditioning, sigma_next, scale, False, lane.prompt.text, last, lane.x0)


def charged(process: ProcessConfig, lane: Lane, outcome: Outcome) -> Lane:
    """The lane charged for an evaluation that left its latents unchanged."""
    nfe, calls = process.cost(outcome.calls)
    return evolved(lane, nfe=lane.nfe + nfe, calls=lane.calls + calls)

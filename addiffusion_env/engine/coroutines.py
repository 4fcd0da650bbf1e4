"""What the actions do to a lane, each written as if the lane were alone; the engine runs many of them in step."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from addiffusion_env.backbones.base import Backbone, Latents
from addiffusion_env.backbones.schedules import early_exit_evaluations, respace
from addiffusion_env.engine.lane import Evaluate, Finish, GeneratedImage, Lane, Outcome, Request, ScorePreview, moved
from addiffusion_env.engine.process import Action, ProcessConfig, RefineConfig
from addiffusion_env.engine.regions import attention_mask, evidence_of, phrase_masks, phrases_of, without
from addiffusion_env.scorers.utility import Utility

LaneCoroutine = Generator[Request, Any, Lane]


def legal_actions(lane: Lane, process: ProcessConfig) -> np.ndarray:
    """(3,) bool: which of continue, stop, refine may be taken. Refine needs an image, a budget and a way ahead.

    A finished image that waits to be judged (``check_finished``) can be taken (stop) or tried again (refine).
    """
    refine = process.refine
    may_refine = (
        refine.enabled
        and lane.x0 is not None
        and (lane.remaining > 0 or lane.shown is not None)
        and lane.step >= refine.first_step
        and lane.refinements < refine.limit
    )
    return np.array([lane.remaining > 0, True, may_refine])


def env_step(
    backbone: Backbone, process: ProcessConfig, lane: Lane, action: int, looks: bool = True
) -> Generator[Request, Any, tuple[Lane, GeneratedImage | None]]:
    """One decision carried out: the lane at its next decision, and the image once the episode has ended.

    Args:
        backbone: the model.
        process: what the actions do.
        lane: where it is.
        action: a legal one.
        looks: whether previews are looked at; a finished image always is.
    """
    if lane.shown is not None and action == Action.STOP:
        return ended(process, replace(lane, actions=(*lane.actions, int(action))), lane.shown)
    lane = yield from act(backbone, process, lane, action)
    if lane.remaining:
        if looks and lane.scores is None:
            lane = yield from seen(lane)
        return lane, None
    image = yield from finished(lane)
    lane = replace(lane, scores=image.scores)
    waiting = replace(lane, shown=image)
    if process.check_finished and legal_actions(waiting, process)[Action.REFINE]:
        return waiting, None
    return ended(process, lane, image)


def ended(process: ProcessConfig, lane: Lane, image: GeneratedImage) -> tuple[Lane, GeneratedImage]:
    """The end of an episode: its image is this one, or a better-liked one of an earlier try where those are kept."""
    chosen = better(process.refine.utility, lane.best, image) if process.refine.accept == "best" else image
    return replace(lane, scores=chosen.scores, shown=None, best=None), chosen


def better(utility: Utility, kept: GeneratedImage | None, new: GeneratedImage) -> GeneratedImage:
    """The better-liked of two finished images, the earlier of equals."""
    if kept is not None and utility.at(kept.scores) >= utility.at(new.scores):
        return kept
    return new


def act(backbone: Backbone, process: ProcessConfig, lane: Lane, action: int) -> LaneCoroutine:
    """Takes one legal action; the lane that comes back has landed when nothing remains of its schedule."""
    lane = replace(lane, actions=(*lane.actions, int(action)))
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
    # The very last step is first order, as with diffusers' lower_order_final.
    outcome = yield ask(process, lane, lane.latents, float(lane.rest[1]), last=lane.remaining == 1)
    lane = moved(lane, outcome.latents, lane.rest[1:], outcome.x0, process.cost(outcome.calls))
    return replace(lane, step=lane.step + 1, features=outcome.features)


def exit_early(backbone: Backbone, process: ProcessConfig, lane: Lane) -> LaneCoroutine:
    """Re-spaces what is left into a few evaluations and takes them; with none, jumps to the predicted x0."""
    way = early_exit_path(backbone, process, lane)
    if len(way) == 1 and lane.remaining > 0:
        if lane.x0 is None:  # nothing to jump to: the first prediction must be paid for
            lane = yield from advance(process, lane)
        assert lane.x0 is not None
        return replace(lane, latents=replace(lane.latents, x=lane.x0), rest=lane.rest[-1:])
    lane = replace(lane, rest=way)
    while lane.remaining:
        lane = yield from advance(process, lane)
    return lane


def early_exit_path(backbone: Backbone, process: ProcessConfig, lane: Lane) -> np.ndarray:
    """(m + 1,) noise levels of an early exit from where the lane is to the end."""
    position = float(backbone.timestep_position(torch.tensor([lane.sigma]))[0])
    evaluations = early_exit_evaluations(process.early_exit_steps, position, lane.remaining)
    if evaluations == lane.remaining:
        return lane.rest  # nothing to save: the schedule goes on as it is
    positions = backbone.timestep_position(torch.from_numpy(lane.rest)).numpy().copy()
    positions[-1] = 0.0  # where a schedule lands is the end of time, whatever noise the checkpoint leaves there
    return respace(lane.rest, evaluations, positions)


def refine(backbone: Backbone, process: ProcessConfig, lane: Lane) -> LaneCoroutine:
    """Re-noises a region, denoises it back to where the lane is, and keeps or drops the result (RefineConfig)."""
    config = process.refine
    if lane.shown is not None:
        best = better(config.utility, lane.best, lane.shown) if config.accept == "best" else None
        lane = replace(lane, shown=None, best=best)
    lane = replace(lane, refinements=lane.refinements + 1)
    lane, mask = yield from region(backbone, process, lane)
    tried = yield from redo(backbone, process, lane, mask)
    if mask is not None:
        shown = mask[0, 0].float().cpu().numpy()
        lane, tried = replace(lane, masks=(*lane.masks, shown)), replace(tried, masks=(*lane.masks, shown))
    if config.accept != "score":
        return tried
    if lane.scores is None:
        lane = yield from seen(lane)
    tried = yield from seen(tried)
    assert lane.scores is not None and tried.scores is not None
    if float(tried.scores.preference[0]) >= float(lane.scores.preference[0]) + config.margin:
        return tried
    return replace(lane, nfe=tried.nfe, calls=tried.calls)  # what was spent is spent


def redo(backbone: Backbone, process: ProcessConfig, lane: Lane, mask: Tensor | None) -> LaneCoroutine:
    """The inner loop of a refinement: k evaluations from the re-noised level back to the lane's own.

    Inside the mask the image is drawn anew; outside, the old trajectory at the same noise level is put back after
    every evaluation, as RePaint does (arXiv:2201.09865, equation 8), so that it comes out as it was.
    """
    path, x_old = backbone.path, lane.latents.x
    assert lane.x0 is not None
    levels, rest, step = refine_way(backbone, process, lane)
    at = [torch.tensor([level], dtype=torch.float64) for level in levels]
    stream = f"refine-{lane.refinements - 1}"
    # Fresh noise at the very start, as a new seed would have; part of the way, noise over what was there.
    if process.refine.renoise == 1:
        latents = backbone.begin(lane.prompt, lane.seed, process.steps, process.spacing, stream)[1]
        x = latents.x
    else:
        x = path.mix(lane.x0, lane.noise(stream), at[0])
        latents = Latents.start(x, at[0])
    old_noise = path.noise_of(x_old, lane.x0, at[-1])
    if mask is not None:
        x = mask * x + (1 - mask) * path.mix(lane.x0, old_noise, at[0])
        latents = Latents.start(x, at[0])
    tried = lane
    for level, following in zip(levels[1:], at[1:], strict=True):
        outcome: Outcome = yield ask(process, lane, latents, float(level))
        x, x0 = outcome.latents.x, outcome.x0
        if mask is not None:
            x = mask * x + (1 - mask) * path.mix(lane.x0, old_noise, following)
            x0 = mask * x0 + (1 - mask) * lane.x0
        latents = Latents.start(x, following) if mask is not None else outcome.latents
        tried = moved(tried, latents, rest, x0, process.cost(outcome.calls))
        tried = replace(tried, features=outcome.features)
    if mask is None and latents.history.scheduler[0] is not None:
        return replace(tried, step=step)  # the pipeline's own scheduler is on its plan, and goes on with it
    return replace(tried, latents=Latents.start(latents.x, at[-1]), step=step)


def refine_way(backbone: Backbone, process: ProcessConfig, lane: Lane) -> tuple[np.ndarray, np.ndarray, int]:
    """The way of a refinement.

    Returns:
        (k + 1,) noise levels from the re-noised level to where it leaves the lane (where it was, or ``return_to``);
        the levels ahead of the lane then; and the steps of the schedule that are done then.
    """
    config = process.refine
    full = backbone.sigmas(process.steps, process.spacing) if lane.levels is None else lane.levels
    if config.return_to is not None:
        return full[: config.return_to + 1], full[config.return_to :], config.return_to
    done = full[full > lane.sigma * (1 + 1e-9)]
    way = np.append(done, lane.sigma)  # from the start to here
    start = (1 - config.renoise) * (len(way) - 1)
    steps = max(1, round(len(way) - 1 - start)) if isinstance(config.steps, str) else config.steps
    places = np.linspace(start, len(way) - 1, steps + 1)
    return np.exp(np.interp(places, np.arange(len(way)), np.log(way))), lane.rest, lane.step


def region(
    backbone: Backbone, process: ProcessConfig, lane: Lane
) -> Generator[Request, Any, tuple[Lane, Tensor | None]]:
    """Finds the region to redo: a mask (1, 1, H, W) in [0, 1] at the latents' resolution, or ``None`` for all of it."""
    config = process.refine
    size = (int(lane.latents.x.shape[-2]), int(lane.latents.x.shape[-1]))
    if config.region == "whole":
        return lane, None
    if config.maps == "attention":
        request = ask(process, lane, lane.latents, None)
        outcome: Outcome = yield replace(request, capture=True)
        lane = spent(process, lane, outcome)
        assert outcome.attention is not None
        positions = lane.conditioning.content[0]
        return lane, attention_mask(outcome.attention[0], positions, config.fraction, config.blur, size)
    lane, maps = yield from phrase_maps(backbone, process, lane)
    return lane, pick_phrase(config, maps, size)


def phrase_maps(backbone: Backbone, process: ProcessConfig, lane: Lane) -> Generator[Request, Any, tuple[Lane, Tensor]]:
    """(P, H, W): where each phrase acts, ``|x0(prompt) - x0(prompt without the phrase)|``, mean over channels."""
    request = replace(ask(process, lane, lane.latents, None), guidance_scale=1.0)
    whole: Outcome = yield request
    lane = spent(process, lane, whole)
    maps = []
    for phrase in phrases_of(lane.prompt):
        conditioning = backbone.rephrased(lane.conditioning, without(lane.prompt.text, phrase))
        other: Outcome = yield replace(request, conditioning=conditioning)
        lane = spent(process, lane, other)
        maps.append((whole.x0 - other.x0).abs().mean(1)[0])
    stacked = torch.stack(maps)
    return replace(lane, evidence=evidence_of(stacked)), stacked


def pick_phrase(config: RefineConfig, maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The mask of the weakest phrase, or of all phrases together."""
    masks = phrase_masks(maps, config.fraction, config.blur, size)
    if config.region == "union":
        return masks.amax(0, keepdim=True)
    weakest = int(maps.flatten(1).amax(1).argmin())
    return masks[weakest : weakest + 1]


def seen(lane: Lane) -> LaneCoroutine:
    """The lane with a look at its last clean prediction."""
    assert lane.x0 is not None
    scores = yield ScorePreview(lane.x0, lane.prompt)
    return replace(lane, scores=scores)


def finished(lane: Lane) -> Generator[Request, Any, GeneratedImage]:
    """The finished image of a lane that has landed."""
    return (yield Finish(lane.latents.x, lane.prompt, lane.conditioning))


def ask(process: ProcessConfig, lane: Lane, latents: Latents, sigma_next: float | None, last: bool = False) -> Evaluate:
    """The guided evaluation of ``latents`` under the lane's prompt."""
    scale = process.scale_at(float(latents.sigma[0]))
    return Evaluate(latents, lane.conditioning, sigma_next, scale, False, lane.prompt.text, last)


def spent(process: ProcessConfig, lane: Lane, outcome: Outcome) -> Lane:
    """The lane with an evaluation charged that did not move it."""
    nfe, calls = process.cost(outcome.calls)
    return replace(lane, nfe=lane.nfe + nfe, calls=lane.calls + calls)

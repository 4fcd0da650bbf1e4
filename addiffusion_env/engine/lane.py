"""One lane (an image being generated): its state, its requests to the engine, and how its failures are counted."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.batches import HISTORY_TENSORS, Conditioning, History, Latents, evolved
from addiffusion_env.engine.process import Action, ProcessConfig
from addiffusion_env.errors import AdDiffusionError, ConfigError, ImageRangeError, NumericsError, ScorerError
from addiffusion_env.prompts import Prompt, keyed_noise
from addiffusion_env.scorers.image_scores import GeneratedImage, ImageScores
from addiffusion_env.scorers.utility import Utility

LANE_ERRORS = (NumericsError, ImageRangeError, ScorerError)
"""Errors that concern a single lane: NaN from a denoiser, decoder or scorer, and a scorer that raises. Any other error
(a wrong configuration, missing weights, a prompt that is too long) ends the run, whatever the limit."""


@dataclass(frozen=True)
class Fault:
    """The result of a dropped lane.

    Attributes:
        error: why it was dropped.
    """

    error: AdDiffusionError


@dataclass
class FaultCount:
    """Counts dropped lanes.

    Attributes:
        limit: number of lanes that may be dropped; 0 raises the first error.
        count: number of lanes dropped so far.
    """

    limit: int = 0
    count: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 0:
            raise ConfigError(f"max_faults must be a number from 0, got {self.limit!r}", "0 raises the first error")

    def drop(self, error: AdDiffusionError) -> Fault:
        """Counts a lane that failed with one of :data:`LANE_ERRORS` and warns.

        Raises:
            AdDiffusionError: ``error``, if more than ``limit`` lanes have failed.
        """
        self.count += 1
        if self.limit == 0:
            raise error
        if self.count > self.limit:
            before = f"{error.cause} ({self.limit} images were dropped before this one, max_faults={self.limit})"
            raise type(error)(before, error.remedy) from error
        warnings.warn(f"image dropped ({self.count} of at most {self.limit}): {error.cause}", stacklevel=2)
        return Fault(error)


class Begin(NamedTuple):
    """Request to start an image from pure noise; answered by a :class:`Lane`. Prompts are encoded in batches."""

    process: ProcessConfig
    prompt: Prompt
    seed: int


class Evaluate(NamedTuple):
    """Request to evaluate the denoiser for one lane and take a solver step.

    Attributes:
        latents: a batch of one.
        conditioning: a batch of one.
        sigma_next: noise level to step to; ``None`` only returns the prediction and leaves the latents unchanged.
        guidance_scale: 1 requests the conditional prediction alone (one network call).
        capture: whether to return attention maps.
        who: the prompt, for error messages.
        last: whether the schedule ends with this step, which solvers take in first order.
        before: (1, C, H, W) the lane's last clean prediction, which the new one is compared with; ``None`` for none.
    """

    latents: Latents
    conditioning: Conditioning
    sigma_next: float | None
    guidance_scale: float
    capture: bool
    who: str
    last: bool = False
    before: Tensor | None = None


class Outcome(NamedTuple):
    """The answer to :class:`Evaluate`; every tensor is a batch of one.

    Attributes:
        latents: the latents after the step.
        x0: the (guided) clean prediction.
        calls: network calls: 2 for a guided evaluation, otherwise 1.
        attention: (1, tokens, h, w) or ``None``.
        features: (1, F) of the denoiser's middle block, or ``None``.
        change: :func:`relative_change` of ``x0`` from the request's ``before``; 0 without one.
    """

    latents: Latents
    x0: Tensor
    calls: int
    attention: Tensor | None
    features: Tensor | None = None
    change: float = 0.0


class ScorePreview(NamedTuple):
    """Request to decode and score a cheap preview of clean latents (1, C, H, W); answered by :class:`ImageScores`."""

    x0: Tensor
    prompt: Prompt


class Finish(NamedTuple):
    """Request to fully decode and score denoised latents (1, C, H, W); answered by :class:`GeneratedImage`.

    Attributes:
        x: the latents.
        prompt: the prompt.
        conditioning: a batch of one, for models whose decoding depends on it.
        utility: computes :attr:`.GeneratedImage.utility`; ``None`` where it is not needed.
    """

    x: Tensor
    prompt: Prompt
    conditioning: Conditioning | None = None
    utility: Utility | None = None


class Decide(NamedTuple):
    """Request for the policy's action; answered by an ``int``, or :class:`Remembered`.

    Attributes:
        lane: the waiting lane (:class:`addiffusion_env.engine.lane.Lane`) with its current scores.
        before: its scores at the previous decision, or ``None``.
        memory: what a policy with a memory returned with its previous action in this episode, or ``None``.
    """

    lane: Any
    before: ImageScores | None
    memory: Any = None


class Remembered(int):
    """An action of a policy with a memory, such as the state of an LSTM, which the next :class:`Decide` carries.

    Attributes:
        memory: the state after the decision; never changed.
    """

    memory: Any

    def __new__(cls, action: int, memory: Any) -> Remembered:
        """An action and the memory after it."""
        made = super().__new__(cls, action)
        made.memory = memory
        return made


Request: TypeAlias = Begin | Evaluate | ScorePreview | Finish | Decide
Coroutine: TypeAlias = Generator[Request, Any, Any]
"""The work of a single lane: it yields requests and is sent their answers."""


@dataclass(frozen=True)
class Lane:
    """The state of one image being generated. Immutable: every transition creates a new lane.

    Attributes:
        prompt: the prompt.
        seed: the image's seed; determines all noise together with the prompt's id.
        conditioning: the encoded prompt, a batch of one.
        latents: the current latents, a batch of one.
        rest: (r + 1,) remaining noise levels; ``rest[0]`` is the current one.
        step: number of steps of the schedule that are done.
        nfe: total number of function evaluations, early exit and refinement included; a call without guidance counts
            half where the schedule is guided.
        calls: total number of network calls.
        refinements: number of refinements taken, accepted or not.
        x0: (1, C, H, W) the last clean prediction; ``None`` before the first evaluation.
        scores: the scores of its preview; ``None`` if it was not scored.
        change: relative change of x0 at the last evaluation, ``|x0' - x0| / |x0|``; 0 before the second one.
        actions: the actions taken so far.
        masks: the masks of its refinements, (h, w) each, for filmstrips.
        evidence: (3,) summary of the last refinement's phrase maps (:func:`engine.regions.evidence_of`); ``None`` if
            there were none.
        shown: the finished image that waits to be accepted or replaced (``check_finished``); ``None`` before.
        best: the finished image of highest utility among earlier attempts (``refine.accept=best``).
        features: (1, F) of the denoiser's middle block at the last evaluation; ``None`` if it has none.
        levels: (m + 1,) noise levels of the whole schedule; ``None`` for the backbone's prompt-independent ones.
    """

    prompt: Prompt
    seed: int
    conditioning: Conditioning
    latents: Latents
    rest: np.ndarray
    step: int = 0
    nfe: float = 0.0
    calls: int = 0
    refinements: int = 0
    x0: Tensor | None = None
    scores: ImageScores | None = None
    change: float = 0.0
    actions: tuple[int, ...] = ()
    masks: tuple[np.ndarray, ...] = ()
    evidence: np.ndarray | None = None
    shown: GeneratedImage | None = None
    best: GeneratedImage | None = None
    features: Tensor | None = None
    levels: np.ndarray | None = None

    @property
    def sigma(self) -> float:
        """The current noise level."""
        return float(self.rest[0])

    @property
    def remaining(self) -> int:
        """Number of steps left in the schedule."""
        return len(self.rest) - 1

    @property
    def preview_step(self) -> int:
        """The step of the schedule that the scored preview is of; 0 where the scores are a finished image's."""
        return self.step if self.remaining else 0

    @property
    def refine_mask(self) -> np.ndarray | None:
        """(h, w) in [0, 1] at the latents' resolution: the region that the last action regenerated.

        ``None`` if the last action was not *refine*, or regenerated the whole image.
        """
        return self.masks[-1] if self.masks and self.actions[-1] == Action.REFINE else None

    def noise(self, stream: str) -> Tensor:
        """(1, C, H, W) noise of a named random stream of this image."""
        like = self.latents.x
        return keyed_noise(self.prompt.prompt_id, self.seed, like.shape[1:], stream)[None].to(like.device)

    def state(self) -> dict[str, Any]:
        """Plain tensors, numbers and strings, from which :func:`restore_lane` restores the lane."""
        past = self.latents.history
        return {
            "prompt": [
                self.prompt.text,
                self.prompt.prompt_id,
                self.prompt.task,
                list(self.prompt.phrases),
                self.prompt.constraints,
            ],
            "seed": self.seed,
            "steps": self.conditioning.steps,
            "latents": [self.latents.x, self.latents.sigma, *(getattr(past, name) for name in HISTORY_TENSORS)],
            "scheduler": past.scheduler[0],
            "rest": torch.from_numpy(np.array(self.rest)),
            "counts": [self.step, self.nfe, self.calls, self.refinements, self.change],
            "x0": self.x0,
            "look": None if self.scores is None else self.scores.state(),
            "actions": list(self.actions),
            "masks": [torch.from_numpy(np.array(mask)) for mask in self.masks],
            "evidence": None if self.evidence is None else torch.from_numpy(self.evidence),
            "shown": None if self.shown is None else self.shown.state(),
            "best": None if self.best is None else self.best.state(),
            "features": self.features,
            "levels": None if self.levels is None else torch.from_numpy(np.array(self.levels)),
        }


def open_lane(backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> Lane:
    """Starts an image from pure noise, as every diffusers pipeline does; a coroutine requests it (:class:`Begin`).

    Raises:
        PromptError: if the prompt is longer than the text encoder's context.
    """
    return open_lanes(backbone, [Begin(process, prompt, seed)])[0]


def open_lanes(backbone: Backbone, requests: Sequence[Begin]) -> list[Lane]:
    """Starts several images; those of one schedule together, with one call of the text encoder.

    Raises:
        PromptError: if a prompt is longer than the text encoder's context.
    """
    groups: dict[tuple[int, str], list[int]] = {}
    for at, request in enumerate(requests):
        groups.setdefault((request.process.steps, request.process.spacing), []).append(at)
    lanes: dict[int, Lane] = {}
    for (steps, spacing), places in groups.items():
        images = [(requests[at].prompt, int(requests[at].seed)) for at in places]
        conditioning, latents, levels = backbone.begin(images, steps, spacing)
        for row, (at, (prompt, seed), own) in enumerate(zip(places, images, levels, strict=True)):
            # A prompt stays for the whole image, so that it does not keep its batch alive.
            lanes[at] = Lane(prompt, seed, conditioning.rows([row]), latents.row(row), own, levels=own)
    return [lanes[at] for at in range(len(requests))]


def restore_lane(backbone: Backbone, state: Mapping[str, Any]) -> Lane:
    """Restores a lane from :meth:`Lane.state`; the prompt is encoded again."""
    text, prompt_id, task, phrases, constraints = state["prompt"]
    x, sigma, x0, past, *older = state["latents"]
    # States saved before histories held two predictions continue with a single one.
    older_x0, older_sigma = older or (torch.zeros_like(x0), torch.full_like(past, float("nan")))
    device = backbone.device
    scheduler = state.get("scheduler")
    history = History(x0.to(device), past.cpu(), older_x0.to(device), older_sigma.cpu(), (scheduler,))
    step, nfe, calls, refinements, change = state["counts"]
    prompt = Prompt(text, prompt_id, task, tuple(phrases), constraints)
    return Lane(
        prompt=prompt,
        seed=state["seed"],
        # States saved before they held a number of steps continue with the pipeline's own.
        conditioning=backbone.resumed(prompt, state["seed"], state.get("steps")),
        latents=Latents(x.to(device), sigma.cpu(), history),
        rest=state["rest"].numpy(),
        step=step,
        nfe=nfe,
        calls=calls,
        refinements=refinements,
        x0=None if state["x0"] is None else state["x0"].to(backbone.device),
        scores=ImageScores.restored(state["look"]),
        change=change,
        actions=tuple(state["actions"]),
        masks=tuple(mask.numpy() for mask in state["masks"]),
        evidence=None if state.get("evidence") is None else state["evidence"].numpy(),
        shown=GeneratedImage.restored(state.get("shown")),
        best=GeneratedImage.restored(state.get("best")),
        features=None if state.get("features") is None else state["features"].to(backbone.device),
        levels=None if state.get("levels") is None else state["levels"].numpy(),
    )


def after_evaluation(lane: Lane, outcome: Outcome, rest: np.ndarray, cost: tuple[float, int], step: int) -> Lane:
    """The lane after an evaluation.

    Args:
        lane: the lane before it.
        outcome: its latents, clean prediction and features.
        rest: the remaining noise levels.
        cost: (NFE, network calls) of the evaluation.
        step: number of steps of the schedule that are done.
    """
    return evolved(
        lane,
        latents=outcome.latents,
        rest=rest,
        x0=outcome.x0,
        scores=None,
        change=outcome.change,
        nfe=lane.nfe + cost[0],
        calls=lane.calls + cost[1],
        step=step,
        features=outcome.features,
    )


def relative_change(x0: Tensor, before: Tensor) -> Tensor:
    """(B,) relative change of clean predictions (B, C, H, W): ``|x0 - before| / |before|``."""
    return (x0 - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1).clamp_min(1e-8)

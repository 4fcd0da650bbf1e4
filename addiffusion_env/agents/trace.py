"""Traces of episodes (every decision with its observation), and callbacks after every step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from addiffusion_env.agents.saved_policy import SavedPolicy
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.episode import Episode
from addiffusion_env.engine.lane import Evaluate, Outcome, Request
from addiffusion_env.engine.observers import Decisions, EpisodeObserver, observed, previews_of
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import ConfigError, unknown
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import Sampler
from addiffusion_env.scorers.image_scores import ImageScores

StepCallback = Callable[[Any, int, float, dict[str, Any]], "Mapping[str, Any] | None"]
"""``callback(pipe, step, timestep, callback_kwargs)``, as diffusers has it; see :class:`StepCalls`."""

CALLBACK_TENSORS = ("latents", "x0")

READ_BY_PIPELINES = (
    "_interrupt",
    "_guidance_scale",
    "_guidance_rescale",
    "_clip_skip",
    "_cross_attention_kwargs",
    "_joint_attention_kwargs",
    "_attention_kwargs",
)
"""Attributes by which callbacks change a call of diffusers' own pipelines."""

INSTEAD = (
    "images of one call are at different steps: return other latents; limit guidance by guidance_interval of the "
    "process; to end a call raise an exception, or close its stream"
)
"""What to do instead of changing the pipeline in a callback."""


@dataclass(frozen=True)
class Job:
    """One image to generate.

    Attributes:
        index: its position among the images of a call, prompt by prompt.
        prompt: its prompt.
        seed: the image's seed.
    """

    index: int
    prompt: Prompt
    seed: int


@dataclass(frozen=True, eq=False)
class Decision:
    """One decision of a policy.

    Attributes:
        sigma: noise level of the lane at the decision.
        nfe: evaluations spent before it.
        action: 0 continue, 1 stop, 2 refine.
        probabilities: (3,) float64, over the legal actions; ``None`` for a policy without learning.
        preference: of the preview, in standard deviations; NaN where no preview was scored.
        clip_score: of the preview, a cosine; NaN where no preview was scored.
        preview: (h, w, 3) uint8, the preview, or the finished image where that is scored; ``None`` before
            the first evaluation.
    """

    sigma: float
    nfe: float
    action: int
    probabilities: np.ndarray | None
    preference: float
    clip_score: float
    preview: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Trace:
    """The trace of one image.

    Attributes:
        prompt: its text.
        seed: its seed.
        decisions: in order; empty for samplers without intermediate decisions (``oracle``, whole pipelines).
        nfe: total number of evaluations.
        network_calls: total number of network calls; a guided evaluation takes two.
        preference: of the finished image; NaN where the sampler needs no scorers and none were given.
        clip_score: of the finished image; NaN likewise.
        masks: (h, w) float each, in [0, 1]: the regions of its refinements; none for those of the whole image.
    """

    prompt: str
    seed: int
    decisions: tuple[Decision, ...]
    nfe: float
    network_calls: int
    preference: float
    clip_score: float
    masks: tuple[np.ndarray, ...]


def trace_of(job: Job, episode: Episode, decisions: Decisions, sampler: Sampler, backbone: Backbone) -> Trace:
    """The trace of a finished episode.

    Args:
        job: the image.
        episode: the finished episode.
        decisions: its recorded decisions.
        sampler: the sampler that decided; bound to the backbone.
        backbone: decodes the previews, in one batch.
    """
    requests = decisions.requests
    chances: Iterable[np.ndarray | None] = [None] * len(requests)
    if isinstance(sampler, SavedPolicy) and requests:
        chances = sampler.probabilities(requests)
    previews = previews_of(backbone, [request.lane for request in requests])
    made = tuple(
        Decision(request.lane.sigma, request.lane.nfe, action, chance, *scores_of(request.lane.scores), preview)
        for request, action, chance, preview in zip(requests, decisions.actions, chances, previews, strict=True)
    )
    lane = episode.lane
    preference, clip_score = scores_of(episode.image.scores)
    return Trace(job.prompt.text, job.seed, made, lane.nfe, lane.calls, preference, clip_score, lane.masks)


def scores_of(scores: ImageScores | None) -> tuple[float, float]:
    """(preference, CLIP score) of one image; NaN where it was not scored."""
    return (float("nan"),) * 2 if scores is None else (float(scores.preference[0]), float(scores.clip_score[0]))


class StepCalls(EpisodeObserver):
    """Calls the user's function after every evaluation that advances a lane, as diffusers' pipelines do.

    The engine works on many images at once, so the function is called once per image and step: ``step`` counts that
    image's evaluations from 0 (early exit and refinement included), ``timestep`` is the network's timestep at which it
    was evaluated, and the tensors in ``callback_kwargs`` are batches of one. It also holds ``index`` (the image's
    position in the call), ``prompt`` and ``seed``. Returned ``latents`` replace those of the lane.
    Evaluations that do not advance a lane (attention and phrase maps of a refinement) are not reported. Samplers that
    run a whole diffusers pipeline (``lcm``, ``turbo``, ``sag``, ``attend_excite``, ``fbcache``) make no calls.

    Args:
        pipe: passed to the function as its first argument.
        backbone: defines the timesteps.
        function: ``callback(pipe, step, timestep, callback_kwargs) -> dict``.
        tensors: which of :data:`CALLBACK_TENSORS` are passed: ``latents`` after the step, and the clean prediction
            ``x0``, each (1, C, H, W). Latents are those of :class:`.Latents`: variance preserving, or on the path of a
            flow, also where the pipeline's scheduler scales its own by sigma (Euler) or packs them into tokens (Flux).
        job: the image.
    """

    def __init__(self, pipe: Any, backbone: Backbone, function: StepCallback, tensors: Sequence[str], job: Job) -> None:
        self.pipe, self.backbone, self.function, self.tensors, self.job = pipe, backbone, function, tensors, job
        self.step = 0

    def evaluated(self, request: Evaluate, outcome: Outcome) -> Outcome:
        """Calls the function for one step; returns the outcome with the replacements that it returns.

        Raises:
            ConfigError: when it returns anything but a mapping or ``None``, or latents of another shape, or sets
                attributes of a call (``_interrupt``, ``_guidance_scale``), which diffusers' own pipelines read.
        """
        if request.sigma_next is None:
            return outcome
        timestep = float(self.backbone.timesteps(request.latents.sigma)[0])
        values = {"latents": outcome.latents.x, "x0": outcome.x0}
        given: dict[str, Any] = {name: values[name] for name in self.tensors}
        given.update(index=self.job.index, prompt=self.job.prompt.text, seed=self.job.seed)
        answer = self.function(self.pipe, self.step, timestep, given)
        if changed := [name for name in READ_BY_PIPELINES if name in vars(self.pipe)]:
            for name in changed:
                delattr(self.pipe, name)
            raise ConfigError(
                f"callback_on_step_end set {', '.join(changed)} of the pipeline, which would not take effect", INSTEAD
            )
        self.step += 1
        if answer is None:
            return outcome
        if not isinstance(answer, Mapping):
            raise ConfigError(
                f"callback_on_step_end returned a {type(answer).__name__}, expected a dict", "return callback_kwargs"
            )
        latents = answer.get("latents", outcome.latents.x)
        if not isinstance(latents, torch.Tensor) or latents.shape != outcome.latents.x.shape:
            shape = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
            raise ConfigError(
                f"callback_on_step_end returned latents of shape {shape}, expected {tuple(outcome.latents.x.shape)}",
                "each call is about one image",
            )
        return outcome._replace(latents=replace(outcome.latents, x=latents.to(outcome.latents.x)))


def check_callback(callback: StepCallback | None, tensors: Sequence[str]) -> None:
    """Checks what can be checked before the first step.

    Raises:
        UnknownNameError: for a tensor that callbacks do not receive, with the nearest one.
        ConfigError: for one of diffusers' own callbacks, which change the attributes of a pipeline's call.
    """
    if hasattr(callback, "tensor_inputs"):
        raise ConfigError(
            f"a {type(callback).__name__} changes attributes of a pipeline's call, which would not take effect",
            INSTEAD,
        )
    for name in tensors:
        if name not in CALLBACK_TENSORS:
            raise unknown("callback_on_step_end_tensor_inputs", name, CALLBACK_TENSORS)


def traced(
    job: Job,
    sampler: Sampler,
    process: ProcessConfig,
    backbone: Backbone,
    calls: Callable[[Job], StepCalls] | None,
    keep: bool,
) -> Generator[Request, Any, tuple[Job, Episode, Trace | None]]:
    """A sampler's coroutine for a job; returns the job, its episode and, if requested, its trace."""
    decisions = Decisions()
    observers = [*([decisions] if keep else []), *([] if calls is None else [calls(job)])]
    coroutine = sampler.coroutine(backbone, process, job.prompt, job.seed)
    episode = yield from observed(coroutine, observers) if observers else coroutine
    return job, episode, trace_of(job, episode, decisions, sampler, backbone) if keep else None

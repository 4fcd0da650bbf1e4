"""Inputs of pipelines: prompts and seeds as one job per image, and arguments of a diffusers pipeline's own call."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Annotated, Any, ClassVar

import numpy as np
import torch

from addiffusion_env.agents.trace import Job
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.calls.arguments import STEP_LISTS
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.backbones.solvers import SCHEDULER
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import ConfigError, PromptError
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import Sampler, placed
from addiffusion_env.samplers.traits import Traits
from addiffusion_env.settings import Ge, Gt, Settings

Prompts = str | Prompt | Iterable["str | Prompt"]
Seeds = int | Iterable[int] | None


@dataclass(frozen=True)
class Numbers(Settings):
    """The numbers of a call of :class:`.AdaptivePipeline`, checked on construction."""

    see: ClassVar[str] = "see AdaptivePipeline"

    max_lanes: Annotated[int, Ge(1)] = 1
    num_images_per_prompt: Annotated[int, Ge(1)] = 1
    decode_batch: Annotated[int, Ge(1)] = 1
    cost_per_nfe: Annotated[float | None, Ge(0)] = None
    target_nfe: Annotated[float | None, Gt(0)] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cost_per_nfe is not None and self.target_nfe is not None:
            raise ConfigError("both cost_per_nfe and target_nfe were given", "give one of them")


def take_prompts(prompts: Prompts | None, others: dict[str, Any]) -> Any:
    """The prompts of a call, which ``others`` may hold under diffusers' name ``prompt``."""
    return others.pop("prompt", None) if prompts is None else prompts


def listed(prompts: Prompts) -> list[str | Prompt]:
    """One prompt or an iterable of them as a list.

    Raises:
        PromptError: for any other type.
    """
    if isinstance(prompts, str | Prompt):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise PromptError(f"prompts must be text or a list of texts, got {type(prompts).__name__}", "pass its text")
    return list(prompts)


def make_jobs(
    prompts: Prompts, seeds: Seeds, images_per_prompt: int, read: Callable[[str], Prompt] = Prompt.of
) -> Iterator[Job]:
    """One job per image, prompt by prompt; checked immediately if the lengths are known, otherwise during iteration.

    Args:
        prompts: one prompt, or any iterable of prompts; consumed one by one.
        seeds: one per image (prompt by prompt); or a number ``s``, for images ``s``, ``s + 1``, ... of every prompt;
            ``None`` means 0.
        images_per_prompt: images of each prompt.
        read: converts a text to a prompt.

    Raises:
        PromptError: for an empty list, or a prompt that is not text.
        ConfigError: for fewer than one image per prompt, seeds that are not integers, or a number of seeds other than
            one per image.

    >>> [(job.index, job.prompt.text, job.seed) for job in make_jobs(["a", "b"], 7, 2)]
    [(0, 'a', 7), (1, 'a', 8), (2, 'b', 7), (3, 'b', 8)]
    """
    Numbers(num_images_per_prompt=images_per_prompt)
    single = seeds is None or not isinstance(seeds, Iterable) or getattr(seeds, "ndim", 1) == 0  # a 0-d array
    if isinstance(prompts, str | Sequence) or not isinstance(prompts, Iterable):
        prompts = listed(prompts)
        if not prompts:
            raise PromptError("no prompts were given", "pass at least one")
        for prompt in prompts:
            Prompt.of(prompt)
        if not single and hasattr(seeds, "__len__"):
            if len(seeds) != len(prompts) * images_per_prompt:  # type: ignore[arg-type]
                each = f" of {images_per_prompt} images each" if images_per_prompt > 1 else ""
                given = f"{len(seeds)} seeds for {len(prompts)} prompts{each}"  # type: ignore[arg-type]
                raise ConfigError(given, "give one seed per image, or one number")
            seeds = [_seed(seed) for seed in seeds]  # type: ignore[union-attr]
    if single:
        first = 0 if seeds is None else _seed(seeds)
        drawn: Iterator[Any] = (first + index % images_per_prompt for index in count())
    else:
        drawn = iter(seeds)  # type: ignore[arg-type]
    return _jobs(prompts, drawn, images_per_prompt, read)


def _jobs(
    prompts: Iterable[str | Prompt], seeds: Iterator[Any], images_per_prompt: int, read: Callable[[str], Prompt]
) -> Iterator[Job]:
    index = 0
    for given in prompts:
        prompt = read(given) if isinstance(given, str) else Prompt.of(given)
        for _ in range(images_per_prompt):
            seed = next(seeds, None)
            if seed is None:
                raise ConfigError(
                    f"the seeds ended after {index} images, but there are more prompts", "give one per image"
                )
            yield Job(index, prompt, _seed(seed))
            index += 1


def check_seeds(jobs: Iterator[Job], sampler: Sampler, process: ProcessConfig) -> Iterator[Job]:
    """Refuses the seed of an image whose noise a ``generator`` draws, where the policy reads no seed either.

    Beside a generator the seed still decides refinements and other attempts, and the policy ``random``. Beside
    ``latents`` it decides all noise but the initial one, which some schedulers do not draw.

    Raises:
        ConfigError: on iteration.
    """
    traits = Traits.of(sampler)
    unread = (traits.constant or traits.learned) and not process.refine.enabled
    for job in jobs:
        if unread and job.prompt.arguments.get("generator") is not None:
            raise ConfigError(
                "seeds would not take effect: the generator draws all noise of an image", "leave out one of them"
            )
        yield job


def _seed(seed: Any) -> int:
    try:
        return operator.index(seed)
    except TypeError as error:
        raise ConfigError(
            f"a seed must be a whole number, got {type(seed).__name__}",
            "noise is keyed by prompt and seed: pass seeds=[0, 1, ...] instead of torch generators",
        ) from error


IMAGES = ("image", "control_image", "ip_adapter_image")
"""Per-prompt arguments of images with colours. A mask of three axes is a batch (diffusers' ``VaeImageProcessor``)."""

PER_PROMPT = (
    *IMAGES,
    "mask_image",
    "masked_image_latents",
    "latents",
    "generator",
    "attention_kwargs",
    "cross_attention_kwargs",
    "joint_attention_kwargs",
)
"""Per-prompt arguments, in addition to those that :data:`PER_PROMPT_PARTS` matches."""

PER_PROMPT_PARTS = ("prompt", "embeds", "embeddings", "attention_mask", "token_ids")
"""Substrings in the names of per-prompt arguments: ``negative_prompt_2``, ``pooled_prompt_embeds`` ..."""


STEPPED = ("eta", *STEP_LISTS)
"""Arguments that only the pipeline's own scheduler reads."""


def belongs_to_prompt(name: str) -> bool:
    """Whether an argument may be given as one for each prompt.

    >>> belongs_to_prompt("negative_prompt_2"), belongs_to_prompt("latents"), belongs_to_prompt("sigmas")
    (True, True, False)
    """
    return name in PER_PROMPT or any(part in name for part in PER_PROMPT_PARTS)


def with_pipeline_kwargs(
    backbone: Backbone,
    sampler: Sampler,
    base: ProcessConfig,
    process: ProcessConfig,
    prompts: Sequence[Prompt],
    images_per_prompt: int,
    given: Mapping[str, Any],
) -> tuple[ProcessConfig, list[Prompt]]:
    """The process and the prompts of a call with further arguments.

    ``num_inference_steps`` and ``guidance_scale`` set the process where the policy leaves them free; everything else
    is passed to the pipeline's own call.

    Args:
        backbone: the model.
        sampler: the policy.
        base: the process that the policy's own is derived from.
        process: the policy's own process.
        prompts: of the call.
        images_per_prompt: images of each prompt.
        given: arguments by name.

    Raises:
        ConfigError: for an argument that the pipeline does not have, that the engine owns, or that would not take
            effect; for a value of the wrong type, or not one for each prompt.
    """
    if not isinstance(backbone, PipelineBackbone):
        raise ConfigError(
            f"backbone {backbone.name!r} takes no arguments of a pipeline's call, got {', '.join(sorted(given))}",
            "wrap a diffusers pipeline: AdaptivePipeline(pipe, policy)",
        )
    backbone.arguments.check(given)
    arguments = dict(given)
    changes: dict[str, Any] = {}
    if arguments.get("num_inference_steps") is not None:
        steps = arguments.pop("num_inference_steps")
        if not isinstance(steps, int | np.integer) or isinstance(steps, bool) or steps < 1:
            raise ConfigError(f"num_inference_steps must be a whole number from 1, got {steps!r:.60}", "for example 20")
        changes["steps"] = int(steps)
    steps_by = next((name for name in STEP_LISTS if arguments.get(name) is not None), "num_inference_steps")
    if steps_by in arguments:  # the pipeline's own rule: they replace num_inference_steps
        changes["steps"] = len(arguments[steps_by])
    guidance = backbone.measured.guidance
    scale = None if guidance.name is None else arguments.get(guidance.name)
    if scale is not None:
        if not isinstance(scale, numbers.Real) or isinstance(scale, bool) or not math.isfinite(scale):
            raise ConfigError(f"{guidance.name} must be one number, got {scale!r:.60}", "call once for each scale")
        arguments[str(guidance.name)] = float(scale)
        changes["guidance_scale"] = guidance.scale(float(scale))
    for name in STEPPED:
        value = arguments.get(name)
        if value is not None and not (isinstance(value, numbers.Real) and value == 0) and process.solver != SCHEDULER:
            raise ConfigError(
                f"{name} would not take effect: solver={process.solver} replaces the pipeline's scheduler",
                "use policy 'continue', or solver=scheduler",
            )
    count = len(prompts)
    usual = backbone.arguments.given
    shared = {
        name: value
        for name, value in arguments.items()
        if not _one_each(name, value, usual.get(name), count, images_per_prompt)
    }
    _check_generators(arguments.get("generator"), count, images_per_prompt)
    made = []
    for row, prompt in enumerate(prompts):
        own = {name: _row(value, row, count) for name, value in arguments.items() if name not in shared}
        made.append(replace(prompt, arguments={**prompt.arguments, **shared, **own}))
    base = replace(base, **changes)
    evaluations = backbone.evaluations(made[0], base.steps) if made else None
    process = placed(sampler, base, backbone, evaluations)
    for name, argument in (("steps", steps_by), ("guidance_scale", guidance.name)):
        if name in changes and getattr(process, name) != changes[name]:
            raise ConfigError(
                f"{argument} would not take effect: policy {sampler.name!r} sets {name}={getattr(process, name)}",
                "use policy 'continue', or write it into the policy's name (fixed:30)",
            )
    return process, made


def _check_generators(given: Any, count: int, images: int) -> None:
    """Refuses generators that several images would draw from, one after the other."""
    if given is None:
        return
    different = {id(entry) for entry in (given if isinstance(given, list | tuple) else [given])}
    if len(different) < count * images:
        number = "one generator" if len(different) == 1 else f"{len(different)} generators"
        raise ConfigError(
            f"{number} for {count * images} images: an image would depend on previous images",
            "pass a list with one generator for each image, or seeds=",
        )


def _one_each(name: str, value: Any, usual: Any, count: int, images: int) -> bool:
    """Whether a value holds one for each prompt (generators: for each image); ``usual`` is the one for every image."""
    if not belongs_to_prompt(name):
        return False
    if isinstance(value, torch.Tensor | np.ndarray):
        if ("latents" in name or "embeds" in name) and value.ndim > 1 and len(value) not in (1, count):
            raise ConfigError(
                f"{name} has {len(value)} rows for {count} prompts", "give one row for all, or one for each prompt"
            )
        if value.ndim < 4 and name in IMAGES:  # (C, H, W) or (H, W, C): a single image
            return False
        return len(value) == count and (count > 1 or "embeds" not in name)
    if not isinstance(value, list | tuple):
        return False
    if name == "ip_adapter_image_embeds" and not any(isinstance(entry, list | tuple) for entry in value):
        return False  # a list with one entry per adapter
    if name in IMAGES and _is_plain_list(usual) and _is_plain_list(value):
        return False  # every prompt takes a list of images: one for each ControlNet, several references ...
    if name == "generator" and len(value) == count * images and images > 1:
        raise ConfigError(
            f"{len(value)} generators for {count} prompts of {images} images each", "repeat the prompts, one per image"
        )
    if len(value) == count:
        return True
    several = "; of several images for a prompt, a list of lists" if name in IMAGES else ""
    raise ConfigError(
        f"{name} has {len(value)} entries for {count} prompts",
        f"give one value for all, or one for each prompt{several}",
    )


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and not any(isinstance(entry, list | tuple) for entry in value)


def _row(value: Any, row: int, count: int) -> Any:
    return value[row : row + 1] if isinstance(value, torch.Tensor | np.ndarray) else value[row]

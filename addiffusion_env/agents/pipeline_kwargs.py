"""Arguments of a diffusers pipeline's own ``__call__``, passed to a call of ``AdaptivePipeline``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.backbones.solvers import SCHEDULER
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import ConfigError
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import Sampler

PER_PROMPT = (
    "image",
    "mask_image",
    "masked_image_latents",
    "control_image",
    "latents",
    "generator",
    "ip_adapter_image",
    "attention_kwargs",
    "cross_attention_kwargs",
    "joint_attention_kwargs",
)
"""Per-prompt arguments, in addition to those that :data:`PER_PROMPT_PARTS` matches."""

PER_PROMPT_PARTS = ("prompt", "embeds", "embeddings", "attention_mask", "token_ids")
"""Substrings in the names of per-prompt arguments: ``negative_prompt_2``, ``pooled_prompt_embeds`` ..."""


STEPPED = ("eta", "timesteps", "sigmas")
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
    guidance = backbone.measured.guidance
    scale = None if guidance.name is None else arguments.get(guidance.name)
    if scale is not None:
        if not isinstance(scale, int | float) or isinstance(scale, bool) or not math.isfinite(scale):
            raise ConfigError(f"{guidance.name} must be one number, got {scale!r:.60}", "call once for each scale")
        changes["guidance_scale"] = guidance.scale(float(scale))
    if changes:
        process = _changed(backbone, sampler, base, changes, guidance.name)
    for name in STEPPED:
        if arguments.get(name) not in (None, 0) and process.solver != SCHEDULER:
            raise ConfigError(
                f"{name} would not take effect: solver={process.solver} replaces the pipeline's scheduler",
                "use policy 'continue', or solver=scheduler",
            )
    count = len(prompts)
    shared = {name: value for name, value in arguments.items() if not _one_each(name, value, count, images_per_prompt)}
    if isinstance(shared.get("generator"), torch.Generator) and count * images_per_prompt > 1:
        raise ConfigError(
            f"one generator for {count * images_per_prompt} images: an image would depend on previous images",
            "pass a list with one generator for each image, or seeds=",
        )
    made = []
    for row, prompt in enumerate(prompts):
        own = {name: _row(value, row, count) for name, value in arguments.items() if name not in shared}
        made.append(replace(prompt, arguments={**prompt.arguments, **shared, **own}))
    return process, made


def _changed(
    backbone: Backbone, sampler: Sampler, base: ProcessConfig, changes: Mapping[str, Any], guidance: str | None
) -> ProcessConfig:
    """The process with other steps or guidance, if the policy leaves them free."""
    changed = sampler.process(replace(base, **changes))
    for name, value in changes.items():
        if getattr(changed, name) != value:
            argument = "num_inference_steps" if name == "steps" else guidance
            raise ConfigError(
                f"{argument} would not take effect: policy {sampler.name!r} sets {name}={getattr(changed, name)}",
                "use policy 'continue', or write it into the policy's name (fixed:30)",
            )
    changed.check(backbone.capabilities, backbone.name)
    return changed


def _one_each(name: str, value: Any, count: int, images: int) -> bool:
    """Whether a value holds one for each prompt (generators: for each image)."""
    if not belongs_to_prompt(name):
        return False
    if isinstance(value, torch.Tensor):
        if ("latents" in name or "embeds" in name) and value.ndim > 1 and len(value) not in (1, count):
            raise ConfigError(
                f"{name} has {len(value)} rows for {count} prompts", "give one row for all, or one for each prompt"
            )
        return len(value) == count and (count > 1 or "embeds" not in name)
    if not isinstance(value, list | tuple):
        return False
    if name == "ip_adapter_image_embeds" and not any(isinstance(entry, list | tuple) for entry in value):
        return False  # a list with one entry per adapter
    if name == "generator" and len(value) == count * images and images > 1:
        raise ConfigError(
            f"{len(value)} generators for {count} prompts of {images} images each", "repeat the prompts, one per image"
        )
    if len(value) == count:
        return True
    raise ConfigError(
        f"{name} has {len(value)} entries for {count} prompts", "give one value for all, or one for each prompt"
    )


def _row(value: Any, row: int, count: int) -> Any:
    return value[row : row + 1] if isinstance(value, torch.Tensor) else value[row]

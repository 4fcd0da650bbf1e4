"""Comparison of a pipeline's own image with that of ``AdaptivePipeline``, from the same generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from addiffusion_env import AdaptivePipeline
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.errors import AdDiffusionError

PROMPT, OTHER = "a photo of a red cup", "two dogs on the sofa"
ROUNDING = 0.0021
"""Slightly more than half a step of 8-bit images: pipelines round only at the end, the engine always."""


def wrapped(pipe: Any, given: Mapping[str, Any], policy: str = "continue") -> AdaptivePipeline:
    """The pipeline with arguments for every image, without previews."""
    return AdaptivePipeline(PipelineBackbone(pipe, given, preview="none"), policy)


def own_image(pipe: Any, given: Mapping[str, Any], text: str | None = PROMPT, seed: int = 0) -> torch.Tensor:
    """(3, H, W) in [0, 1], by the pipeline's own call."""
    arguments = {**given, "output_type": "pt", "generator": torch.Generator().manual_seed(seed)}
    if text is not None and given.get("prompt_embeds") is None:
        arguments["prompt"] = text
    with torch.no_grad():
        output = pipe(**arguments)
    return next(iter(output.values()))[0].float()


def adaptive_image(adaptive: AdaptivePipeline, text: str = PROMPT, seed: int = 0, **kwargs: Any) -> torch.Tensor:
    """(3, H, W) in [0, 1], by the adaptive pipeline."""
    generator = torch.Generator().manual_seed(seed)
    image: torch.Tensor = adaptive(text, generator=generator, output_type="pt", **kwargs).images[0]
    return image


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference of two images."""
    assert a.shape == b.shape
    return float((a - b).abs().max())


def check_same(
    pipe: Any,
    given: Mapping[str, Any],
    adaptive: AdaptivePipeline | None = None,
    text: str = PROMPT,
    effect: float = 0.005,
) -> torch.Tensor:
    """Asserts that the adaptive pipeline generates the pipeline's own image, and that another prompt changes some pixel
    by at least ``effect``; returns the image."""
    adaptive = wrapped(pipe, given) if adaptive is None else adaptive
    wanted = own_image(pipe, given, text)
    assert wanted.isfinite().all()
    if given.get("prompt_embeds") is None:
        assert difference(wanted, own_image(pipe, given, OTHER)) > effect
    made = adaptive_image(adaptive, text)
    assert difference(made, wanted) <= ROUNDING, difference(made, wanted)
    return wanted


def two_lines(error: BaseException) -> str:
    """The message of one of the package's errors, which has a cause and a remedy."""
    assert isinstance(error, AdDiffusionError)
    assert str(error).count("\n") == 1 and error.cause and error.remedy
    return str(error)

"""Faults injected into real components, for the lane of a chosen prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from addiffusion_env.backbones.base import Backbone


def nan_for(backbone: Backbone, text: str) -> Callable[..., Any]:
    """A ``backbone.predict`` that returns NaN in the rows of one prompt."""
    true, sick = backbone.predict, backbone.encode([text]).tensors["text"]

    def predict(x: Any, sigma: Any, conditioning: Any, *args: Any) -> Any:
        found = true(x, sigma, conditioning, *args)
        rows = (conditioning.tensors["text"] == sick).flatten(1).all(1)
        x0 = found.x0.clone()
        x0[rows] = float("nan")
        return replace(found, x0=x0)

    return predict


def scores_with(scorer: Any, text: str, fault: Callable[[torch.Tensor, list[int]], torch.Tensor]) -> Callable[..., Any]:
    """A ``scorer.score`` with a fault in batches that contain a prompt; ``fault`` receives the scores and its rows."""
    true = scorer.score

    def score(images: torch.Tensor, prompts: Sequence[Any]) -> torch.Tensor:
        rows = [row for row, prompt in enumerate(prompts) if prompt.text == text]
        scores = true(images, prompts)
        return fault(scores, rows) if rows else scores

    return score


def to_nan(scores: torch.Tensor, rows: list[int]) -> torch.Tensor:
    scores = scores.clone()
    scores[rows] = float("nan")
    return scores


def to_error(scores: torch.Tensor, rows: list[int]) -> torch.Tensor:
    raise ZeroDivisionError("a scorer's own mistake")


def memory_for(function: Callable[..., Any], rows: int, seen: list[int]) -> Callable[..., Any]:
    """A model's function on a device with memory for ``rows`` rows; records the batch sizes of successful calls."""

    def limited(x: torch.Tensor, *args: Any) -> Any:
        if len(x) > rows:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        seen.append(len(x))
        return function(x, *args)

    return limited

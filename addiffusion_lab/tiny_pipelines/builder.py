"""The description of a tiny pipeline: how it is built, how it is called, and what it does in a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

STRONGER = 1.3
"""Factor of the weights of linear layers in denoisers: the default initialisation preserves 1/3 of the variance."""


def asks(prompt: str) -> dict[str, Any]:
    """Keywords that pass a prompt to a pipeline."""
    return {"prompt": prompt}


def fill_zeros(module: torch.nn.Module, deviation: float = 0.1) -> None:
    """Replaces parameters that are entirely zero by small random values.

    Networks are initialised as the identity by zero-initialised output layers and gates; as long as these are zero, the
    prompt has no effect, and tests of prompts are vacuous.
    """
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=deviation)


@dataclass(frozen=True)
class Builder:
    """Builds a tiny pipeline with random weights on the CPU, the same at every call.

    Attributes:
        make: returns the pipeline.
        calls: rows of each denoiser call of one step, in order, for one image with ``kwargs``.
        kwargs: keywords of the pipeline's ``__call__`` other than the prompt, the generator and the output type.
        size: height and width of the image in pixels; included in the keywords if ``sized``.
        sized: whether the pipeline takes ``height`` and ``width``.
        guidance: name of the guidance keyword, or None. Its value is in ``kwargs``.
        denoisers: names of the components that are called at least once per step.
        inputs: prompt -> the keywords that pass it to the pipeline.
        task: ``text-to-image``, ``image-to-image``, ``inpainting`` or ``controlnet``; others are not supported as
            backbones.
        fast: whether it is one of the few that the fast tests use.
    """

    make: Callable[[], Any]
    calls: tuple[int, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (16, 16)
    sized: bool = True
    guidance: str | None = "guidance_scale"
    denoisers: tuple[str, ...] = ("transformer",)
    inputs: Callable[[str], dict[str, Any]] = asks
    task: str = "text-to-image"
    fast: bool = False

    def __call__(self) -> Any:
        """Returns a new pipeline, without progress bar, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = self.make()
            for part in pipe.components.values():
                if isinstance(part, torch.nn.Module):
                    fill_zeros(part)
                    part.eval().requires_grad_(False)
            networks = [getattr(pipe, name) for name in self.denoisers]
            for layer in {layer for network in networks for layer in network.modules()}:
                if isinstance(layer, torch.nn.Linear):
                    layer.weight.mul_(STRONGER)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def arguments(self, prompt: str, **changes: Any) -> dict[str, Any]:
        """Returns the keywords of a call: those of this builder, and ``changes``."""
        size = {"height": self.size[0], "width": self.size[1]} if self.sized else {}
        return {"num_inference_steps": 3, "output_type": "pt", **size, **self.kwargs, **self.inputs(prompt), **changes}

    def draw(self, pipe: Any, prompt: str, seed: int = 0, **changes: Any) -> torch.Tensor:
        """Returns the image of a prompt, float (1, 3 or 4 channels, height, width)."""
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # SD 3's ControlNet pipeline encodes its image with torch's own generator
            image = next(iter(pipe(**self.arguments(prompt, **{"generator": generator, **changes})).values()))
        return torch.from_numpy(image).permute(0, 3, 1, 2) if isinstance(image, np.ndarray) else image

"""What a lane's program may ask of the engine, and what it gets back."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from addiffusion_env.backbones.base import Conditioning, Latents
from addiffusion_env.prompts.base import Prompt
from addiffusion_env.scorers.look import Look


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the denoiser for one lane, and take a solver step.

    Attributes:
        latents: a batch of one.
        conditioning: a batch of one.
        sigma_next: where to step to; ``None`` to stay and only hear the prediction.
        guidance_scale: 1 asks for the text-only prediction (one network call).
        capture: whether attention maps are wanted.
        who: the prompt, for error messages.
        last: whether the schedule ends with this step: solvers take it in first order.
    """

    latents: Latents
    conditioning: Conditioning
    sigma_next: float | None
    guidance_scale: float
    capture: bool
    who: str
    last: bool = False


@dataclass(frozen=True)
class Outcome:
    """The answer to :class:`Evaluate`; every tensor is a batch of one.

    Attributes:
        latents: after the step.
        x0: the (guided) clean prediction.
        calls: network calls: 2 for a guided evaluation, 1 for another.
        attention: (1, tokens, h, w) or ``None``.
        features: (1, F) of the denoiser's middle block, or ``None``.
    """

    latents: Latents
    x0: Tensor
    calls: int
    attention: Tensor | None
    features: Tensor | None = None


@dataclass(frozen=True)
class Peek:
    """Decode a cheap preview of clean latents (1, C, H, W) and show it to the scorers; answered by a :class:`Look`."""

    x0: Tensor
    prompt: Prompt


@dataclass(frozen=True)
class Finish:
    """Decode landed latents (1, C, H, W) in full and show them to the scorers; answered by a :class:`Picture`."""

    x: Tensor
    prompt: Prompt
    conditioning: Conditioning | None = None


@dataclass(frozen=True)
class Picture:
    """A finished picture.

    Attributes:
        image: (3, H, W) float32 in [-1, 1].
        look: what the scorers said of it.
    """

    image: Tensor
    look: Look

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return to_pixels(self.image)


def to_pixels(image: Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> (H, W, 3) uint8."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()


@dataclass(frozen=True)
class Decide:
    """Ask the policy for an action; answered by an ``int``.

    Attributes:
        lane: the lane (:class:`addiffusion_env.engine.lane.Lane`) that waits; its look is fresh.
        before: its look at the decision before, or ``None``.
    """

    lane: Any
    before: Look | None


Request: TypeAlias = Evaluate | Peek | Finish | Decide
Program: TypeAlias = Generator[Request, Any, Any]
"""A lane's work, written as if it were alone: it yields requests and is sent their answers."""

"""What a scorer is: a picture and a prompt in, a number out. Scorers know nothing of the decision process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch

from addiffusion_env.backbones.identity import Identified
from addiffusion_env.errors import ImageRangeError
from addiffusion_env.prompts.base import Prompt

_FLATTEN = "lay them over a background of your choice: the packages behind the scorers disagree about alpha"
COLOURS = {
    1: ("grey", "repeat the channel: images.expand(-1, 3, -1, -1)"),
    2: ("grey with alpha", _FLATTEN),
    4: ("RGB with alpha", _FLATTEN),
}
"""Numbers of channels that pictures have in other places -> what they are, and how to make three of them."""


def check_images(images: torch.Tensor) -> torch.Tensor:
    """Returns ``images`` when they are (B, 3, H, W) floats in [-1, 1]; refuses everything else.

    Raises:
        ImageRangeError: for another shape, integer pixels, values outside [-1.01, 1.01], NaN or infinity.
    """
    if images.ndim == 4 and images.shape[1] in COLOURS:
        kind, remedy = COLOURS[images.shape[1]]
        raise ImageRangeError(f"pictures must be (B, 3, H, W), got {tuple(images.shape)}: {kind}", remedy)
    if images.ndim != 4 or images.shape[1] != 3:
        raise ImageRangeError(
            f"pictures must be (B, 3, H, W), got {tuple(images.shape)}", "add the batch dimension, channels first"
        )
    if not images.is_floating_point():
        raise ImageRangeError(
            f"pictures must be floats in [-1, 1], got {images.dtype}", "convert: images.float() / 127.5 - 1"
        )
    if images.numel():
        low, high = (float(value) for value in images.detach().aminmax())
        if not (low >= -1.01 and high <= 1.01):  # also true for NaN
            raise ImageRangeError(
                f"pictures must lie in [-1, 1], got [{low:.3g}, {high:.3g}]", "scale: images / 127.5 - 1 for bytes"
            )
    return images


class Scorer(Identified, ABC):
    """Scores pictures against prompts.

    Scores are kept under its ``identity``, which describes what it holds; see :class:`.Identified`.

    Attributes:
        name: the registry name, used in records and column heads.
        unit: the scale of the number, for column heads: ``"cosine"``, ``"standard deviations"`` ...
        higher_is_better: the direction.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True

    @classmethod
    def needs(cls) -> str:
        """What this machine lacks to run it, in a few words; empty when nothing."""
        return ""

    @abstractmethod
    def score(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Scores (B, 3, H, W) pictures in [-1, 1] against ``B`` prompts; returns (B,) float32 on the CPU.

        Raises:
            ImageRangeError: for pictures of the wrong shape, type or range.
            PromptError: when there is not one prompt a picture.
            NumericsError: when a score is not finite.
        """


class Embedder(Identified, ABC):
    """Maps pictures (and, for two-tower models, texts) to unit vectors.

    Attributes:
        dim: length of the vectors.
    """

    dim: int

    @classmethod
    def needs(cls) -> str:
        """As :meth:`Scorer.needs`."""
        return ""

    @abstractmethod
    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) pictures in [-1, 1] -> (B, dim) float32 unit vectors on the CPU."""

"""Flux: a rectified-flow transformer on packed latents."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from addiffusion_env.backbones.named_pipeline import NamedPipeline
from addiffusion_env.backbones.pipelines import PipelineSpec
from addiffusion_env.backbones.solvers import SCHEDULER


class FluxBackbone(NamedPipeline):
    """FLUX.1-schnell: 1024x1024, four steps, velocity prediction, no classifier-free guidance.

    ``max_sequence_length`` is 256 tokens of T5, as in training. FLUX.1-dev works too: it takes ``distilled_guidance``
    as an input, by default the pipeline's value; use 28 steps for it.
    """

    name = "flux"
    spec = PipelineSpec(
        "flux",
        "FluxPipeline",
        "black-forest-labs/FLUX.1-schnell",
        unused=("image_encoder", "feature_extractor"),
        auto_dtype="bfloat16",  # as published; activations of T5 and of the transformer leave float16's range
    )
    own: ClassVar = {"num_inference_steps": 4, "max_sequence_length": 256}
    argument_options: ClassVar = {
        **NamedPipeline.argument_options,
        "max_sequence_length": ("max_sequence_length",),
        "distilled_guidance": ("guidance_scale",),
    }

    def sigmas(self, steps: int, spacing: str) -> np.ndarray:
        """See :meth:`Backbone.sigmas`; ``FluxPipeline`` passes trailing timesteps to its scheduler."""
        return super().sigmas(steps, SCHEDULER if spacing == "trailing" else spacing)


def packed(x: Tensor) -> Tensor:
    """Latents (B, C, H, W) -> tokens (B, H/2 * W/2, 4 C), one token per two-by-two block.

    >>> import torch
    >>> bool((unpacked(packed(torch.arange(64.0).reshape(1, 4, 4, 4)), 4, 4).flatten() == torch.arange(64.0)).all())
    True
    """
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(batch, height // 2 * (width // 2), channels * 4)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, H/2 * W/2, 4 C) -> latents (B, C, H, W); the inverse of :func:`packed`."""
    batch, _, depth = tokens.shape
    blocks = tokens.reshape(batch, height // 2, width // 2, depth // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(batch, depth // 4, height, width)

"""The denoiser's own features: what its middle block computed in the last call, pooled over the picture.

They come with the evaluation, so a policy that reads them needs neither a preview nor a scorer. As inputs of small
networks such features were studied by Baranchuk et al. 2022 (arXiv:2112.03126).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FeatureTap:
    """Keeps the pooled output of one module of a denoiser from its last call.

    It is a forward hook that stays: one that came and went would not be seen by ``torch.compile``, which traces the
    hooks that are there at the first call.

    Attributes:
        pooled: (N, C) float32, the mean over cells or tokens; ``None`` when the module has not run.
    """

    def __init__(self) -> None:
        self.pooled: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Pools (N, C, h, w) of a UNet's block, or (N, tokens, C) of a transformer's, the image tokens last."""
        value: Tensor = (output[-1] if isinstance(output, tuple) else output).detach()
        self.pooled = value.mean(dim=(2, 3) if value.ndim == 4 else 1, dtype=torch.float32)

    def take(self, rows: int) -> Tensor | None:
        """(rows, C) of the first rows, and forgets them."""
        pooled, self.pooled = self.pooled, None
        # A copy: CUDA graphs write the next call's into the same memory.
        return None if pooled is None else pooled[:rows].clone()


def tap(module: nn.Module) -> FeatureTap:
    """The module's tap: the one that it has, or a new one. Backbones that share a denoiser share it."""
    for hook in module._forward_hooks.values():
        if isinstance(hook, FeatureTap):
            return hook
    made = FeatureTap()
    module.register_forward_hook(made)
    return made

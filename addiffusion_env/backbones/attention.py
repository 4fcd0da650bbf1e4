"""Capturing text-to-image attention without changing what the network computes.

Each cross-attention layer's own processor still makes the output (whatever it is: SDPA, xFormers, LoRA); beside it the
attention weights of the wanted rows are computed once more from the same projections. On leaving the context the
pipeline's processors are the very objects that were there before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from addiffusion_env.errors import CapabilityError


class AttentionStore:
    """Sums attention maps over layers and heads.

    Args:
        rows: (r,) indices of the network batch whose maps are wanted.
        grid: (h, w) the resolution to keep; layers at other resolutions are left out.
    """

    def __init__(self, rows: Tensor, grid: tuple[int, int]) -> None:
        self.rows = rows
        self.grid = grid
        self._sum: Tensor | None = None
        self._layers = 0

    def add(self, attn: Any, image: Tensor, text: Tensor) -> None:
        """Adds one layer's softmax(q k / sqrt(d)): image (B, h*w, C) asks, text (B, tokens, D) answers."""
        height, width = self.grid
        if image.ndim != 3 or image.shape[1] != height * width:
            return
        rows = self.rows.to(image.device)
        query = attn.to_q(image[rows]).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        key = attn.to_k(text[rows]).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        weights = torch.softmax((query @ key.transpose(-1, -2)).float() * attn.scale, dim=-1).mean(1)
        maps = weights.transpose(1, 2).unflatten(-1, (height, width))
        self._sum = maps if self._sum is None else self._sum + maps
        self._layers += 1

    def mean(self) -> Tensor:
        """(r, tokens, h, w): over the tokens of each cell the entries sum to 1.

        Raises:
            CapabilityError: when no layer has the wanted resolution.
        """
        if self._sum is None:
            raise CapabilityError(
                f"no cross-attention layer works at {self.grid[0]}x{self.grid[1]}",
                "use refine.maps=phrase, or another grid",
            )
        return self._sum / self._layers


class CaptureProcessor:
    """Calls the layer's own processor, then records cross-attention into a store."""

    def __init__(self, inner: Any, store: AttentionStore) -> None:
        self.inner = inner
        self.store = store

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The inner processor's output, unchanged."""
        output = self.inner(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        if encoder_hidden_states is not None:
            self.store.add(attn, hidden_states, encoder_hidden_states)
        return output


@contextmanager
def captured_cross_attention(denoiser: Any, store: AttentionStore) -> Iterator[None]:
    """Within the context, every cross-attention layer of ``denoiser`` (a diffusers model) also fills ``store``."""
    before = dict(denoiser.attn_processors)
    # In diffusers' UNets attn1 is self-attention and attn2 cross-attention.
    after = {name: CaptureProcessor(p, store) if ".attn2." in name else p for name, p in before.items()}
    try:
        denoiser.set_attn_processor(after)
        yield
    finally:
        denoiser.set_attn_processor(before)

"""The layout of a pipeline's latents: the map from its denoising loop's layout to the input of its autoencoder.

Pipelines pack latents into tokens, add axes of length one, scale and shift. The engine works on spatial latents
(C, h, w), on which masks and previews are defined. The map is measured: numbers that identify each entry are sent
through the pipeline's own code between its loop and ``vae.decode``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BASE = 16
"""Entries are numbered in digits of this base, small enough to be exact in half precision."""


@dataclass(frozen=True)
class LatentLayout:
    """The layout of one image's latents.

    Attributes:
        shape: (C, h, w) in the engine.
        inner: shape in the pipeline's loop, without the batch axis.
        order: (n,) flat index into ``inner`` of each entry of ``shape``; ``None`` if the layouts are equal.
        gain: (n,) the autoencoder's input is ``gain * x + bias`` in the engine's layout.
        bias: (n,).
        decoded: shape of the autoencoder's input, without the batch axis; ``None`` if the map is not known.
    """

    shape: tuple[int, ...]
    inner: tuple[int, ...]
    order: Tensor | None = None
    gain: Tensor | None = None
    bias: Tensor | None = None
    decoded: tuple[int, ...] | None = None

    @property
    def spatial(self) -> bool:
        """Whether the last two axes are spatial."""
        return len(self.shape) == 3

    def outer(self, x: Tensor) -> Tensor:
        """(B, *inner) -> (B, *shape)."""
        if self.order is None:
            return x.reshape(-1, *self.shape)
        return x.flatten(1)[:, self.order.to(x.device)].reshape(-1, *self.shape)

    def back(self, x: Tensor) -> Tensor:
        """(B, *shape) -> (B, *inner)."""
        if self.order is None:
            return x.reshape(-1, *self.inner)
        flat = torch.empty_like(x.flatten(1))
        flat[:, self.order.to(x.device)] = x.flatten(1)
        return flat.reshape(-1, *self.inner)

    def to_decode(self, x: Tensor) -> Tensor:
        """(B, *shape) clean latents -> the input of the autoencoder's ``decode``, (B, *decoded)."""
        assert self.gain is not None and self.bias is not None and self.decoded is not None
        flat = x.flatten(1) * self.gain.to(x) + self.bias.to(x)
        return flat.reshape(-1, *self.decoded)


def learn_layout(inner: Tensor, decoded: Callable[[Tensor], Tensor]) -> LatentLayout:
    """Measures a layout.

    Args:
        inner: (1, ...) any latents in the pipeline's layout.
        decoded: maps latents in that layout to the autoencoder's input, (1, ...).

    Returns:
        The layout. If the map is not a permutation with a gain and a bias for each entry, the pipeline's own layout
        with ``decoded=None``.
    """
    shape = tuple(inner.shape[1:])
    own = LatentLayout(shape, shape)
    count = inner[0].numel()
    bias = decoded(torch.zeros_like(inner)).double()
    gain = decoded(torch.ones_like(inner)).double() - bias
    if bias.numel() != count or not bool((gain.abs() > 1e-6).all()):
        return own
    names = torch.arange(count)
    order = torch.zeros(count, dtype=torch.long)
    place = 1
    while place < count:
        digit = ((names // place) % BASE).to(inner).reshape(inner.shape)
        seen = (decoded(digit).double() - bias) / gain
        order += seen.round().long().flatten().cpu() * place
        place *= BASE
    if not torch.equal(order.sort().values, names):
        return own
    generator = torch.Generator().manual_seed(0)
    trial = torch.randn(inner.shape, generator=generator).to(inner)
    wanted = decoded(trial).double()
    grid = tuple(side for side in bias.shape[1:] if side != 1) or (1,)
    grid = tuple(bias.shape[1:]) if len(bias.shape) == 4 else grid
    if len(grid) != 3:
        return own
    same = bool((order == names).all())
    made = LatentLayout(grid, shape, None if same else order, gain.flatten(), bias.flatten(), tuple(bias.shape[1:]))
    error = (made.to_decode(made.outer(trial.double())) - wanted).abs().max() / wanted.abs().max()
    return made if float(error) < 0.05 else own

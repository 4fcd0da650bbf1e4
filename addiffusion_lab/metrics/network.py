"""Feature networks of FID and KID: map images to vectors, with an identity that changes with the vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from addiffusion_env.scorers import require_finite
from addiffusion_lab.metrics.images import Images


@dataclass(frozen=True)
class FeatureNetwork:
    """A network and its preprocessing.

    Attributes:
        name: short, for results: ``"inception"`` is reserved for Inception-v3's 2048-wide pool of the original FID.
        identity: changes with anything that affects the features, such as weights and resizing. Key of the cache.
        dim: length of the features.
        embed: (b, 3, H, W) uint8 on the CPU -> (b, dim) floats on any device.
    """

    name: str
    identity: str
    dim: int
    embed: Callable[[torch.Tensor], torch.Tensor]

    def features(self, images: Images, batch: int = 32) -> np.ndarray:
        """(n, dim) float32, one row per image; computed once per ``images`` object, which stores them.

        Raises:
            NumericsError: when the network gives NaN or infinity.
        """
        if self.identity not in images.known:
            with torch.no_grad():
                rows = torch.cat([self.embed(pixels).float().cpu() for pixels in images.batches(batch)])
            labels = [f"image {number}" for number in range(len(rows))]
            images.known[self.identity] = require_finite(rows, f"feature network {self.name}", labels).numpy()
        return images.known[self.identity]

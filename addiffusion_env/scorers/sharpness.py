"""Variance of the Laplacian: how much fine detail an image has. Needs no weights and does not read the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F

from addiffusion_env.scorers import ModelScorer

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as OpenCV's and PIL's conversion to grey


class SharpnessScorer(ModelScorer):
    """The focus measure of Pech-Pacheco et al. (2000): the variance of the four-neighbour Laplacian of the grey levels.

    Grey levels run from 0 to 255 and borders are mirrored, as in ``cv2.Laplacian(grey, cv2.CV_64F).var()``, so the
    usual thresholds apply; ``cv2.cvtColor`` rounds grey levels to bytes, which adds about 1.5 to a smooth image's. It
    measures detail, not beauty: noise is sharp, and it depends on the image's size.
    """

    name: ClassVar[str] = "sharpness"
    unit: ClassVar[str] = "variance of grey levels"

    @classmethod
    def from_pretrained(cls) -> SharpnessScorer:
        """Loads nothing; defined so that every scorer is created the same way."""
        return cls()

    def _score(self, images: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        images = images.float()
        grey = (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True) * 127.5
        kernel = images.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).view(1, 1, 3, 3)
        laplacian = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="reflect"), kernel)
        return laplacian.var(dim=(1, 2, 3), correction=0)

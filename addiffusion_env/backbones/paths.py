"""Noise paths: how signal and noise mix at a noise level, in one notation for every model family.

A path writes the noisy latents at level sigma as ``x = alpha(sigma) * x0 + std(sigma) * noise``:

========================  ===================  =============================  ==========================
path                      sigma                alpha(sigma)                   std(sigma)
========================  ===================  =============================  ==========================
variance preserving (SD)  std / alpha, in      1 / sqrt(1 + sigma^2)          sigma / sqrt(1 + sigma^2)
                          [0, 14.6] on SD 1.5
rectified flow (Flux)     time, in [0, 1]      1 - sigma                      sigma
========================  ===================  =============================  ==========================

``sigma`` of the variance-preserving path is that of Karras et al. 2022 (arXiv:2206.00364), as in k-diffusion and
diffusers' Euler schedulers. All functions take and return float64 tensors of any shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class NoisePath(ABC):
    """Signal and noise scales as functions of sigma; see the module's table."""

    name: str

    @abstractmethod
    def alpha(self, sigma: Tensor) -> Tensor:
        """Scale of the clean latents."""

    @abstractmethod
    def std(self, sigma: Tensor) -> Tensor:
        """Scale of the noise."""

    def half_log_snr(self, sigma: Tensor) -> Tensor:
        """Lambda = log(alpha / std), DPM-Solver's time (arXiv:2206.00927, section 3); +inf at sigma 0."""
        return torch.log(self.alpha(sigma)) - torch.log(self.std(sigma))

    def mix(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Noises clean latents: (B, C, H, W), (B, C, H, W), (B,) -> (B, C, H, W)."""
        return rows(self.alpha(sigma), x0) * x0 + rows(self.std(sigma), x0) * noise

    def noise_of(self, x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
        """The noise that ``x`` holds when its clean latents are ``x0``; ``sigma`` must be above 0."""
        return (x - rows(self.alpha(sigma), x) * x0) / rows(self.std(sigma), x)


class VariancePreserving(NoisePath):
    """The path of DDPM, SD 1.x, SD 2.x and SDXL."""

    name = "variance_preserving"

    def alpha(self, sigma: Tensor) -> Tensor:
        """``1 / sqrt(1 + sigma^2)``."""
        return torch.rsqrt(1 + sigma**2)

    def std(self, sigma: Tensor) -> Tensor:
        """``sigma / sqrt(1 + sigma^2)``."""
        return sigma * torch.rsqrt(1 + sigma**2)


class RectifiedFlow(NoisePath):
    """The straight path of rectified flow: Flux, SD 3."""

    name = "rectified_flow"

    def alpha(self, sigma: Tensor) -> Tensor:
        """``1 - sigma``."""
        return 1 - sigma

    def std(self, sigma: Tensor) -> Tensor:
        """``sigma`` itself."""
        return sigma


def rows(scale: Tensor, like: Tensor) -> Tensor:
    """Shapes a (B,) float64 scale to multiply (B, C, H, W) latents, in their dtype and on their device."""
    return scale.to(device=like.device, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))

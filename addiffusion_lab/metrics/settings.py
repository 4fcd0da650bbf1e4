"""What metrics are made of: their settings, feature networks and results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch

from addiffusion_env.errors import unknown
from addiffusion_env.scorers import require_finite
from addiffusion_env.settings import Ge, Settings
from addiffusion_lab.metrics.images import Images
from addiffusion_lab.metrics.packages import LPIPS_URLS


@dataclass(frozen=True)
class MetricSettings(Settings):
    """Settings shared by all metrics; each reads the relevant ones.

    Attributes:
        features: the network of FID and KID: a name of ``FEATURES``, or your own object.
        weights: the network's file (``inception``) or folder (``dino``, ``clip``); ``None``: the file that torch.hub
            keeps, or the models of the emoji world.
        cache: folder in which reference features are kept; ``None``: not cached.
        lpips_network: ``alex`` (the authors' advice for evaluation), ``vgg`` or ``squeeze``.
        lpips_weights: torchvision's file of that network; ``None``: the one that torch.hub keeps.
        kid_subsets: number of subsets.
        kid_subset_size: images of each set per subset; limited by the smaller set.
        batch: images per forward pass.
        device: where networks run.
        seed: seed of KID's subsets.
    """

    section: ClassVar[str] = "metrics.settings"
    retired: ClassVar[Mapping[str, str]] = {
        "psnr_cap": "leave it out: identical images count 100 dB",
        "backend": "leave it out: FID and KID are torch-fidelity's, which resizes as the original FID did",
    }

    features: str | FeatureNetwork = "inception"
    weights: Path | str | None = None
    cache: Path | str | None = None
    lpips_network: str = "alex"
    lpips_weights: Path | str | None = None
    kid_subsets: Annotated[int, Ge(1)] = 100
    kid_subset_size: Annotated[int, Ge(2)] = 1000
    batch: Annotated[int, Ge(1)] = 32
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the settings before hours of feature extraction."""
        super().__post_init__()
        if self.lpips_network not in LPIPS_URLS:
            raise unknown("LPIPS network", self.lpips_network, LPIPS_URLS)


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


Setting = str | int | float


class SmallSampleWarning(UserWarning):
    """A metric was computed on too few images to be comparable with published values."""


@dataclass(frozen=True)
class MetricResult:
    """Value of one metric.

    Attributes:
        name: the metric; with another network than Inception, ``fid`` is named ``fid[network]``.
        value: the number. FID and KID: 0 or more for equal distributions, lower is closer. PSNR: decibels, higher is
            closer. LPIPS: 0 for equal images, lower is closer.
        n: number of images.
        backend: which package computed it, with its version; values of different backends are not comparable.
        settings: everything else that the value depends on: network, sha256 of its weights, size of the reference ...
        higher_is_better: the direction.
        values: (n,) one number per image, in order, for paired metrics; empty for metrics of whole sets.
        spread: standard deviation over KID's subsets; ``None`` for the others. Subsets overlap, so it is not a standard
            error.
        notes: warnings about the value.
    """

    name: str
    value: float
    n: int
    backend: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    higher_is_better: bool = False
    values: tuple[float, ...] = ()
    spread: float | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.3g}"
        notes = "".join(f"\n  note: {note}" for note in self.notes)
        return f"{self.name} {self.value:.4g}{spread} (n={self.n}, {self.backend}){notes}"

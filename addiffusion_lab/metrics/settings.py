"""Settings of metrics: everything that may change a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from addiffusion_env.errors import unknown
from addiffusion_env.settings import Ge, Settings
from addiffusion_lab.metrics.network import FeatureNetwork
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

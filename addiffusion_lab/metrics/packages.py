"""The metric packages: imported when a metric needs them, reported with their versions."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from addiffusion_env.errors import MissingPackageError, WeightsError

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
"""Inception-v3 of the original FID (TensorFlow, 2015-12-05) for PyTorch, 96 MB."""

ALEXNET_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
SQUEEZENET_URL = "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"
LPIPS_URLS = {"alex": ALEXNET_URL, "vgg": VGG16_URL, "squeeze": SQUEEZENET_URL}
"""The trunk of each LPIPS network: torchvision's ImageNet weights. Its linear layers come with the package."""


def load_package(module: str) -> Any:
    """Imports a module of the ``metrics`` extra.

    Raises:
        MissingPackageError: when it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"this metric needs the package {module.split('.')[0]}, which cannot be imported: {error}",
            "pip install 'addiffusion-env[metrics]'",
        ) from error


def backend_name(package: str) -> str:
    """``"torch-fidelity 0.4.0"``: name of a package in results."""
    return f"{package} {version(package)}"


def find_weights(path: Path | str | None, url: str) -> Path:
    """The file of weights: ``path``, or the file that torch.hub has downloaded from ``url``.

    Nothing is downloaded implicitly: evaluation machines often have no network access.

    Raises:
        WeightsError: when it is missing, with its address and the path to save it to.
    """
    kept = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    found = kept if path is None else Path(path).expanduser()
    if not found.is_file():
        raise WeightsError(
            f"no weights at {found}", f"download {url} to {kept}, or to any other path and set that in the settings"
        )
    return found

"""The metric packages: imported when a metric needs them, named with their versions."""

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
    """``"torch-fidelity 0.4.0"``: a package as it is named in results."""
    return f"{package} {version(package)}"


def find_weights(path: Path | str | None, url: str) -> Path:
    """The file of weights: ``path``, or where torch.hub keeps what it has downloaded from ``url``.

    Nothing is downloaded behind the caller's back: evaluation machines often have no way out.

    Raises:
        WeightsError: when it is not there, with where to get it and where to put it.
    """
    kept = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    found = kept if path is None else Path(path).expanduser()
    if not found.is_file():
        raise WeightsError(
            f"no weights at {found}", f"download {url} to {kept}, or to any place and name its path in the settings"
        )
    return found


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A state dict, read without running any code that the file may hold.

    Raises:
        WeightsError: when the file is no state dict.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}
    except Exception as error:  # torch.load raises whatever its unpickler met
        raise WeightsError(
            f"{path} is no file of PyTorch weights: {str(error).splitlines()[0][:200]}", "download it again"
        ) from error

"""PSNR and LPIPS: distance of each image from the reference image of the same prompt and seed.

Both measure whether a sampler reproduces the reference, not the quality of its images.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from addiffusion_env.errors import ConfigError, ImageRangeError, WeightsError
from addiffusion_env.scorers import read_state_dict
from addiffusion_lab.metrics.images import Images
from addiffusion_lab.metrics.packages import LPIPS_URLS, backend_name, find_weights, load_package
from addiffusion_lab.metrics.settings import MetricResult, MetricSettings

PEAK = 255.0
PSNR_CAP = 100.0
"""Value in decibels of identical images (infinite PSNR), so that a mean exists."""
LPIPS_LEAST = 32
"""Minimum side in pixels for which the last layers of the networks have an output."""


def psnr(images: Images, reference: Images, settings: MetricSettings) -> MetricResult:
    """Peak signal-to-noise ratio, ``10 log10(255^2 / MSE)`` of each pair over all pixels and channels; the mean.

    The mean is taken over decibels, one value per image, so that it can be paired by prompt.

    Raises:
        ConfigError: when the numbers of images differ.
        ImageRangeError: when the sizes of a pair differ.
    """
    errors = [float(np.mean((np.subtract(*pair, dtype=np.float64)) ** 2)) for pair in _pairs(images, reference)]
    identical = errors.count(0.0)
    values = [min(10 * math.log10(PEAK**2 / error), PSNR_CAP) if error else PSNR_CAP for error in errors]
    note = f"{identical} of {len(values)} images are identical to their reference and count {PSNR_CAP:g} dB"
    return MetricResult(
        name="psnr",
        value=float(np.mean(values)),
        n=len(values),
        backend="addiffusion-env",
        settings={"peak": PEAK, "cap": PSNR_CAP, "identical": identical},
        higher_is_better=True,
        values=tuple(values),
        notes=(note,) if identical else (),
    )


def lpips(images: Images, reference: Images, settings: MetricSettings) -> MetricResult:
    """Learned perceptual distance of each pair (Zhang et al., 2018, arXiv 1801.03924), version 0.1; the mean.

    Images are compared at their own size: LPIPS of other resolutions is not comparable.

    Raises:
        ConfigError: when the numbers of images differ.
        ImageRangeError: when the sizes of a pair differ, or are below 32 pixels.
        WeightsError: when the trunk's weights are missing or of another network.
        MissingPackageError: without the package ``lpips``.
    """
    path = find_weights(settings.lpips_weights, LPIPS_URLS[settings.lpips_network])
    model = _lpips_model(settings.lpips_network, path, settings.device)
    values: list[float] = []
    with torch.no_grad():
        for first, second in _pairs(images, reference):
            if min(first.shape[:2]) < LPIPS_LEAST:
                raise ImageRangeError(
                    f"LPIPS needs at least {LPIPS_LEAST} pixels per side, got {first.shape[0]}x{first.shape[1]}",
                    "use psnr",
                )
            values.append(float(model(*(_signed(pixels).to(settings.device) for pixels in (first, second)))))
    return MetricResult(
        name="lpips",
        value=float(np.mean(values)),
        n=len(values),
        backend=backend_name("lpips"),
        settings={
            "network": settings.lpips_network,
            "version": "0.1",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        },
        values=tuple(values),
    )


def _lpips_model(network: str, path: Path, device: str) -> Any:
    package = load_package("lpips")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # it builds its trunk with deprecated arguments of torchvision
        # The trunk is initialised at random and loaded below; otherwise the package would download it.
        model = package.LPIPS(net=network, pnet_rand=True, verbose=False)
    source = read_state_dict(path)
    # Its slices use torchvision's indices: slice2.3.weight is features.3.weight.
    wanted = {key: f"features.{key.split('.', 1)[1]}" for key in model.net.state_dict()}
    missing = [name for name in wanted.values() if name not in source]
    if missing:
        raise WeightsError(
            f"{path} is not torchvision's {network}: it lacks {len(missing)} tensors, first {missing[0]}",
            f"download {LPIPS_URLS[network]}",
        )
    try:
        model.net.load_state_dict({key: source[name] for key, name in wanted.items()})
    except RuntimeError as error:
        raise WeightsError(
            f"{path} is not torchvision's {network}: {' '.join(str(error).split())[:200]}",
            f"download {LPIPS_URLS[network]}",
        ) from error
    return model.to(device).eval().requires_grad_(False)


def _pairs(images: Images, reference: Images) -> Any:
    if len(images) != len(reference):
        raise ConfigError(
            f"{len(images)} images but {len(reference)} references",
            "pair them: same prompts and seeds, in the same order",
        )
    return (_same_size(*pair) for pair in zip(images, reference, strict=True))


def _same_size(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if first.shape != second.shape:
        raise ImageRangeError(
            f"an image is {first.shape} but its reference is {second.shape}", "make both at the same size"
        )
    return first, second


def _signed(pixels: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1

"""FID and KID: distances between two sets of images, as distributions of a network's features.

Neither has a value per image, so neither can be paired by prompt: they are descriptive and decide no claim. FID is
biased upwards on few images, by an amount that depends on the model judged (Chong & Forsyth, 2020, arXiv 1911.07023);
KID is not.
"""

from __future__ import annotations

import numpy as np
import torch

from addiffusion_env.errors import ConfigError
from addiffusion_lab.metrics.features import cached_features, load_features
from addiffusion_lab.metrics.images import Images
from addiffusion_lab.metrics.packages import backend_name, load_package
from addiffusion_lab.metrics.settings import FeatureNetwork, MetricResult, MetricSettings, Setting

BACKEND = "torch-fidelity"
FID_ENOUGH = 10_000
"""Minimum number of images per set for a FID that is comparable with published ones."""


def fid(images: Images, reference: Images, settings: MetricSettings) -> MetricResult:
    """Fréchet distance of Gaussians fitted to both sets' features (Heusel et al., 2017, arXiv 1706.08500, eq. 6).

    Raises:
        ConfigError: for fewer than 2 images in a set.
        WeightsError, MissingPackageError: when the network cannot be loaded.
    """
    network, first, second = _both(images, reference, settings)
    return MetricResult(
        name=_name("fid", network),
        value=frechet_distance(first, second),
        n=len(first),
        backend=backend_name(BACKEND),
        settings=_shown(network, len(second)),
        notes=(*_sample_notes(len(first), len(second), network.dim), *_format_notes(images, reference)),
    )


def kid(images: Images, reference: Images, settings: MetricSettings) -> MetricResult:
    """Squared maximum mean discrepancy with kernel (x.y / d + 1)^3, unbiased (Bińkowski et al., 2018, 1801.01401).

    Its mean may be slightly negative for equal distributions.

    Raises:
        ConfigError: for fewer than 2 images in a set.
        WeightsError, MissingPackageError: when the network cannot be loaded.
    """
    network, first, second = _both(images, reference, settings)
    size = min(settings.kid_subset_size, len(first), len(second))
    mean, spread = kernel_distance(first, second, settings.kid_subsets, size, settings.seed)
    notes: tuple[str, ...] = ()
    if size < settings.kid_subset_size:
        wanted = settings.kid_subset_size
        notes = (f"subsets of {size} images, not {wanted}: the smaller set has no more, so the spread is unreliable",)
    return MetricResult(
        name=_name("kid", network),
        value=mean,
        n=len(first),
        backend=backend_name(BACKEND),
        settings=_shown(network, len(second)) | {"subsets": settings.kid_subsets, "subset_size": size},
        spread=spread,
        notes=(*notes, *_format_notes(images, reference)),
    )


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` of (n, d) and (m, d) features, by torch-fidelity."""
    module = load_package("torch_fidelity.metric_fid")
    moments = [module.fid_features_to_statistics(torch.from_numpy(rows)) for rows in _checked(first, second)]
    return float(module.fid_statistics_to_metric(*moments, verbose=False)[module.KEY_METRIC_FID])


def kernel_distance(first: np.ndarray, second: np.ndarray, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Mean and standard deviation over ``subsets`` of KID between ``size`` rows of (n, d) and of (m, d) features."""
    module = load_package("torch_fidelity.metric_kid")
    found = module.kid_features_to_metric(
        *(torch.from_numpy(rows) for rows in _checked(first, second)),
        kid_subsets=subsets,
        kid_subset_size=size,
        rng_seed=seed,
        verbose=False,
    )
    return float(found[module.KEY_METRIC_KID_MEAN]), float(found[module.KEY_METRIC_KID_STD])


def _both(images: Images, reference: Images, settings: MetricSettings) -> tuple[FeatureNetwork, np.ndarray, np.ndarray]:
    load_package("torch_fidelity")  # before computing features, which may take hours
    network = load_features(settings)
    second = cached_features(settings.cache, reference, network, settings.batch)
    return network, network.features(images, settings.batch), second


def _checked(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64: the package computes in the precision of its input."""
    for rows in (first, second):
        if rows.ndim != 2 or len(rows) < 2:
            raise ConfigError(f"a distribution needs 2 or more images, got features of {rows.shape}", "generate more")
    return first.astype(np.float64), second.astype(np.float64)


def _name(metric: str, network: FeatureNetwork) -> str:
    return metric if network.name == "inception" else f"{metric}[{network.name}]"


def _shown(network: FeatureNetwork, n_reference: int) -> dict[str, Setting]:
    return {"network": network.identity, "dim": network.dim, "n_reference": n_reference}


def _sample_notes(n: int, n_reference: int, dim: int) -> tuple[str, ...]:
    notes = [
        f"{count} {what} images: FID needs {FID_ENOUGH} or more to be compared with published numbers"
        for what, count in (("made", n), ("reference", n_reference))
        if count < FID_ENOUGH
    ]
    if min(n, n_reference) <= dim:
        notes.append(f"no more images than features ({dim}): a covariance is singular, the FID mostly bias; use KID")
    return tuple(notes)


def _format_notes(images: Images, reference: Images) -> tuple[str, ...]:
    found = {"made": images.lossy(), "reference": reference.lossy()}
    return tuple(
        f"{count} {what} images use lossy compression, which changes the value: save both sets as PNG"
        for what, count in found.items()
        if count
    )

"""Several metrics of one set of images in one call; feature networks run once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from addiffusion_lab.metrics import METRICS
from addiffusion_lab.metrics.features import load_features
from addiffusion_lab.metrics.images import Images, ImagesLike
from addiffusion_lab.metrics.settings import MetricResult, MetricSettings, SmallSampleWarning

OF_FEATURES = ("fid", "kid")


def image_metrics(
    images: ImagesLike,
    reference: ImagesLike,
    metrics: Sequence[str] = ("psnr", "lpips"),
    settings: MetricSettings | None = None,
) -> dict[str, MetricResult]:
    """Computes ``metrics`` of ``images`` against ``reference``.

    Args:
        images: images of a sampler: a tensor, an array, paths or a folder; see :data:`ImagesLike`.
        reference: for ``fid`` and ``kid`` any set (real images, or the full schedule's); for ``psnr`` and ``lpips``
            the images of the same prompts and seeds in the same order. Pass an ``Images`` object to compare many
            samplers with it: its features are computed once.
        metrics: names of ``METRICS``.
        settings: everything else; ``None``: the defaults of :class:`MetricSettings`.

    Returns:
        Name -> result, in the requested order.

    Raises:
        UnknownNameError: for an unknown metric, before anything is computed.
        ConfigError, ImageRangeError: for images that cannot be read or paired.
        WeightsError, MissingPackageError: when a network cannot be loaded.

    Warns:
        SmallSampleWarning: each note of FID and KID about sample size or lossy files.
    """
    settings = settings or MetricSettings()
    functions = {name: METRICS.load(name) for name in metrics}
    made, wanted = Images.of(images), Images.of(reference)
    if any(name in OF_FEATURES for name in functions):
        settings = replace(settings, features=load_features(settings))
    found = {name: function(made, wanted, settings) for name, function in functions.items()}
    for name in found:
        for note in found[name].notes if name in OF_FEATURES else ():
            warnings.warn(f"{name}: {note}", SmallSampleWarning, stacklevel=2)
    return found

"""Metrics of finished images against reference images, by name. Listing them imports nothing heavy.

``fid`` and ``kid`` compare two sets; ``psnr`` and ``lpips`` compare pairs. See :mod:`.measure` to
compute several in one call, and :mod:`addiffusion_env.profiling` for seconds and peak memory during generation.
"""

from __future__ import annotations

from addiffusion_env.registry import Registry

METRICS = Registry(
    "metric",
    {
        "fid": "addiffusion_lab.metrics.distances:fid",
        "kid": "addiffusion_lab.metrics.distances:kid",
        "psnr": "addiffusion_lab.metrics.paired:psnr",
        "lpips": "addiffusion_lab.metrics.paired:lpips",
    },
)
"""Name -> function ``(images, reference, settings) -> MetricResult``; see
:class:`addiffusion_lab.metrics.settings.MetricSettings`."""

FEATURES = Registry(
    "feature network",
    {
        "inception": "addiffusion_lab.metrics.features:inception",
        "dino": "addiffusion_lab.metrics.features:dino",
        "clip": "addiffusion_lab.metrics.features:clip",
    },
)
"""Name -> function ``(settings) -> FeatureNetwork``. Only ``inception`` gives the standard FID and KID."""

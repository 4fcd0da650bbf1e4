"""Contracts of metrics of finished images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from addiffusion_env.checks.base import require
from addiffusion_lab.metrics.images import Images
from addiffusion_lab.metrics.settings import MetricResult, MetricSettings

Metric = Callable[[Images, Images, MetricSettings], MetricResult]
SETTINGS = MetricSettings(features="dino", kid_subsets=4, kid_subset_size=8)
"""The emoji world's DINO instead of Inception, whose weights are not in the package."""


def the_result_says_what_it_is(metric: Metric) -> None:
    """The result has a name, a finite value, the number of images and the package that computed it."""
    found = metric(_images(0), _images(1), SETTINGS)
    require(isinstance(found, MetricResult), f"it gives a {type(found).__name__}", "return a MetricResult")
    require(bool(found.name and found.backend), f"name {found.name!r}, backend {found.backend!r}", "fill in both")
    require(bool(np.isfinite(found.value)), f"the value is {found.value}", "return a finite one, or raise an error")
    require(found.n == len(_images(0)), f"n is {found.n}", "count the images judged")
    require(
        len(found.values) in (0, found.n),
        f"{len(found.values)} values for {found.n} images",
        "return one per image, or none",
    )
    require(bool((metric.__doc__ or "").strip()), "there is no docstring", "state formula and source")


def equal_images_are_best(metric: Metric) -> None:
    """Images compared with themselves have a better value than compared with others."""
    same, other = (metric(_images(0), _images(seed), SETTINGS) for seed in (0, 1))
    better = same.value > other.value if same.higher_is_better else same.value < other.value
    require(better, f"themselves {same.value}, others {other.value}", "check higher_is_better")


def it_is_deterministic(metric: Metric) -> None:
    """The same images give the same number."""
    first, second = (metric(_images(0), _images(1), SETTINGS).value for _ in range(2))
    require(first == second, f"{first} became {second}", "draw from settings.seed")


METRIC_CONTRACTS = (the_result_says_what_it_is, equal_images_are_best, it_is_deterministic)
"""Subject: a function ``(images, reference, settings) -> MetricResult``."""


def _images(seed: int) -> Images:
    """Twelve random images of 64x64 pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    return Images.of(coarse.repeat(8, axis=1).repeat(8, axis=2))

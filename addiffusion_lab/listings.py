"""Benchmarks, metrics and VLM services for ``python -m addiffusion_env list`` and ``check``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

from addiffusion_env.catalogue import Entry, first_line, lacks
from addiffusion_env.checks.base import each
from addiffusion_env.checks.components import Found
from addiffusion_env.prompts import BENCHMARKS
from addiffusion_lab.benchmarks.origin import open_origin
from addiffusion_lab.metrics import METRICS
from addiffusion_lab.metrics.contract import METRIC_CONTRACTS
from addiffusion_lab.metrics.packages import ALEXNET_URL, INCEPTION_URL, find_weights, load_package
from addiffusion_lab.vlm import SERVICES


def benchmarks() -> Iterator[Entry]:
    """Public prompt lists, with the required files."""
    for name in BENCHMARKS:
        about = BENCHMARKS.load(name).about
        tasks = f" in {len(about.counts)} tasks" if len(about.counts) > 1 else ""
        counted = f"{sum(about.counts.values())} prompts{tasks}" if about.counts else "prompts"
        needs = lacks(partial(open_origin, None, about), f"its files ({', '.join(about.files)})")
        yield Entry(name, f"{about.title}: {counted}", needs)


def metrics() -> Iterator[Entry]:
    """Metrics of finished images, with the required packages and weights."""
    lacking = {
        "fid": lacks(lambda: load_package("torch_fidelity"), "the extra [metrics]")
        or lacks(lambda: find_weights(None, INCEPTION_URL), "Inception's weights (features=dino needs none)"),
        "lpips": lacks(lambda: load_package("lpips"), "the extra [metrics]")
        or lacks(lambda: find_weights(None, ALEXNET_URL), "AlexNet's weights"),
    }
    lacking["kid"] = lacking["fid"]
    return (Entry(name, first_line(METRICS.load(name)), lacking.get(name, "")) for name in METRICS)


def judges() -> Iterator[Entry]:
    """Services of vision-language models that compare images."""
    for name, service in SERVICES.items():
        keyed = any(os.environ.get(variable) for variable in service.key_variables)
        needs = "" if keyed else f"a key in {' or '.join(service.key_variables)}, or your own server"
        yield Entry(f"{name}:MODEL", service.summary, needs)


def find_metric(name: str) -> Found | None:
    """Finds a metric by name and checks it against the contracts of metrics."""
    how = "the emoji world's DINO features" if name in ("fid", "kid") else ""
    return Found("metric", how, lambda: each(METRIC_CONTRACTS, METRICS.load(name))) if name in METRICS else None

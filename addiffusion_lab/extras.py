"""Extras of an evaluation: claims, metrics, a VLM judge and exports in the official layouts of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.extras import Extra, Reported
from addiffusion_env.evaluation.manifest import Manifest
from addiffusion_env.evaluation.records import Record
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import Sampler
from addiffusion_lab.benchmarks.export import check_export, export_run
from addiffusion_lab.claims.page import write_page
from addiffusion_lab.claims.render import hypotheses_section, print_verdicts
from addiffusion_lab.claims.setup import check_claims, judge_evaluation
from addiffusion_lab.measured import (
    MetricsConfig,
    VlmConfig,
    judge_by_vlm,
    measure_metrics,
    metrics_sections,
    vlm_sections,
)
from addiffusion_lab.vlm import make_client


class Hypotheses(Extra):
    """H1 to H4, each supported, not supported or inconclusive."""

    first, folder = True, "hypotheses"

    def __init__(self, config: Mapping[str, Any], samplers: Sequence[Sampler], backbone: str) -> None:
        """Refuses claims that cannot be judged."""
        check_claims(samplers, backbone, config)

    @staticmethod
    def runs(given: Mapping[str, Any]) -> Sequence[str]:
        """The policy that was trained without refinement, if given."""
        without = given.get("trained_without")
        return () if without is None else (str(without),)

    @classmethod
    def report(cls, records: Sequence[Record], manifest: Manifest, folder: Path) -> Reported:
        """Sections of the verdicts."""
        settings = manifest.settings.get("hypotheses")
        if settings is None:
            return Reported()
        verdicts = judge_evaluation(records, manifest, settings)
        return Reported((hypotheses_section(verdicts),), verdicts, partial(print_verdicts, verdicts))


class Page(Extra):
    """A page of results with its figures, written from the records: ``page/results.md``."""

    takes = bool

    def __init__(self, config: Mapping[str, Any], samplers: Sequence[Sampler], backbone: str) -> None:
        """Refuses a page without claims."""
        if config.get("hypotheses") is None:
            raise ConfigError("page=true writes a page about claims, and hypotheses is null", "set hypotheses={}")

    def run(self, folder: Path, prompts: Sequence[Prompt]) -> None:
        """Writes the page."""
        print(f"page: {write_page([folder], folder / 'page')}", flush=True)


class Metrics(Extra):
    """FID, KID, PSNR and LPIPS of every sampler's images against a reference."""

    needs_images = True

    def __init__(self, config: Mapping[str, Any], samplers: Sequence[Sampler], backbone: str) -> None:
        """Reads the settings."""
        self.config = MetricsConfig.read(config["metrics"], [sampler.name for sampler in samplers])

    def run(self, folder: Path, prompts: Sequence[Prompt]) -> None:
        """Computes the metrics; they are stored in ``metrics.json``."""
        measure_metrics(folder, self.config)

    @classmethod
    def report(cls, records: Sequence[Record], manifest: Manifest, folder: Path) -> Reported:
        """The stored ones."""
        return Reported(metrics_sections(folder, manifest))


class VlmJudge(Extra):
    """A vision-language model compares the policy's images with those of other samplers."""

    needs_images = True

    def __init__(self, config: Mapping[str, Any], samplers: Sequence[Sampler], backbone: str) -> None:
        """Reads the settings and looks for the service's key."""
        self.config = VlmConfig.read(config["vlm"], [sampler.name for sampler in samplers])
        make_client(self.config.judge, **(self.config.client or {}))

    def run(self, folder: Path, prompts: Sequence[Prompt]) -> None:
        """Requests missing comparisons; they are stored in ``vlm.json``."""
        judge_by_vlm(folder, self.config, prompts)

    @classmethod
    def report(cls, records: Sequence[Record], manifest: Manifest, folder: Path) -> Reported:
        """The stored ones."""
        return Reported(vlm_sections(folder, manifest))


class BenchmarkExport(Extra):
    """Exports images in the folder layout of a benchmark's official scorer."""

    needs_images, takes = True, bool

    def __init__(self, config: Mapping[str, Any], samplers: Sequence[Sampler], backbone: str) -> None:
        """Refuses a benchmark without an official layout."""
        self.benchmark = config["benchmark"]
        check_export(self.benchmark)

    def run(self, folder: Path, prompts: Sequence[Prompt]) -> None:
        """Writes the images and prints the command of the official scorer."""
        for done in export_run(folder, self.benchmark, prompts):
            print(f"{done.images} images in {done.folder}; score them with: {done.command}", *done.notes, sep="\n  ")

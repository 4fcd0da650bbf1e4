"""Public benchmarks in an evaluation: which prompts it takes, and its pictures as the official scorers read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

from addiffusion_env.backbones.traits import traits_of
from addiffusion_env.errors import ConfigError, unknown
from addiffusion_env.evaluation.manifest import read_manifest
from addiffusion_env.evaluation.records import uid_of
from addiffusion_env.evaluation.runner import RECORDS_FOLDER
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.prompts import BENCHMARKS
from addiffusion_env.prompts.base import Prompt, PromptSource
from addiffusion_lab.benchmarks.base import Benchmark
from addiffusion_lab.benchmarks.export import LAYOUTS, Exported, export

OFFICIAL_FOLDER = "official"
GRAMMAR_PROMPTS = 128
"""How many prompts an evaluation takes of a source without an end."""


def choose_prompts(config: Mapping[str, Any], backbone: str) -> tuple[str, dict[str, Any]]:
    """The prompt source of an evaluation and its options.

    Args:
        config: with ``benchmark``, ``benchmark_path`` and ``benchmark_options``; without a benchmark ``prompt_source``
            and ``prompt_options`` count, or the backbone's own source and its test prompts.
        backbone: of the pictures; a benchmark's prompts are written in the words of its world.

    Raises:
        UnknownNameError: for a benchmark that does not exist.
    """
    name, traits = config["benchmark"], traits_of(backbone)
    if name is None:
        source, options = config["prompt_source"] or traits.prompts, config["prompt_options"]
        return source, dict(traits.test_options if options is None and source == traits.prompts else options or {})
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS)
    return name, {"path": config["benchmark_path"], "world": traits.world, **(config["benchmark_options"] or {})}


def take_prompts(source: PromptSource, config: Mapping[str, Any]) -> tuple[list[Prompt], dict[str, Any]]:
    """The prompts of an evaluation: ``config["prompts"]`` of them, or all of a list.

    Returns:
        them, and the configuration with their number and, of a benchmark, where the list came from and its hash.
    """
    count = config["prompts"]
    if count is None:
        count = len(source) if isinstance(source, Sized) else GRAMMAR_PROMPTS
    prompts = source.take(count, config["prompt_seed"])
    taken = {**config, "prompts": len(prompts)}
    return prompts, {**taken, "benchmark_list": source.record()} if isinstance(source, Benchmark) else taken


def check_export(benchmark: str | None) -> None:
    """Refuses, before anything is made, to export prompts that have no official layout.

    Raises:
        UnknownNameError: when ``benchmark`` is no such benchmark.
    """
    if benchmark not in LAYOUTS:
        raise unknown("official layout", str(benchmark), LAYOUTS)


def export_run(out_dir: Path | str, benchmark: str, prompts: Sequence[Prompt]) -> list[Exported]:
    """Writes every method's pictures to ``<out_dir>/official/<place>-<method>``, seeds in the evaluation's order.

    Args:
        out_dir: of a finished evaluation that kept its pictures.
        benchmark: see :func:`addiffusion_lab.benchmarks.export.export`, also for further errors.
        prompts: those of the evaluation.

    Raises:
        ConfigError: when pictures are missing.
        RunFolderError: when the evaluation cannot be read, or the export not be written.
    """
    folder = Path(out_dir)
    manifest = read_manifest(folder)
    store = RecordStore(folder / RECORDS_FOLDER)
    written = []
    for place, method in enumerate(manifest.methods):
        uids = {
            prompt_id: [uid_of(method.variant, key, seed) for seed in manifest.seeds]
            for prompt_id, key in zip(manifest.prompt_ids, manifest.keys, strict=True)
        }
        found = store.pictures(uid for group in uids.values() for uid in group)
        wanted = sum(map(len, uids.values()))
        if len(found) < wanted:
            raise ConfigError(
                f"{wanted - len(found)} of {wanted} pictures of {method.name} were not kept",
                "choose another out=, or delete the records: they are made again, and kept",
            )
        pictures = [(prompt, [found[uid] for uid in uids[prompt.prompt_id]]) for prompt in prompts]
        # Names of methods hold colons and paths.
        name = "".join(char if char.isalnum() or char in "-." else "-" for char in method.name)[-100:]
        written.append(export(benchmark, pictures, folder / OFFICIAL_FOLDER / f"{place:02d}-{name}"))
    return written

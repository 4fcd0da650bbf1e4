"""Prompts of an evaluation: from a benchmark, a grammar or a file."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

from addiffusion_env.backbones import traits_of
from addiffusion_env.prompts import BENCHMARKS, Prompt, PromptSource

GRAMMAR_PROMPTS = 128
"""Number of prompts that an evaluation takes from an infinite source."""


def choose_prompts(config: Mapping[str, Any], backbone: str) -> tuple[str, dict[str, Any]]:
    """The prompt source of an evaluation and its options.

    Args:
        config: with ``benchmark``, ``benchmark_path`` and ``benchmark_options``; without a benchmark ``prompt_source``
            and ``prompt_options`` count, or the backbone's own source and its test prompts.
        backbone: of the images; a benchmark's prompts are written in the words of its world.

    Raises:
        UnknownNameError: for a benchmark that does not exist.
    """
    name, traits = config["benchmark"], traits_of(backbone)
    if name is None:
        source, options = config["prompt_source"] or traits.prompts, config["prompt_options"]
        return source, dict(traits.test_options if options is None and source == traits.prompts else options or {})
    if name not in BENCHMARKS:
        raise BENCHMARKS.unknown(name)
    return name, {"path": config["benchmark_path"], "world": traits.world, **(config["benchmark_options"] or {})}


def take_prompts(source: PromptSource, config: Mapping[str, Any]) -> tuple[list[Prompt], dict[str, Any]]:
    """The prompts of an evaluation: ``config["prompts"]`` of them, or all of a list.

    Returns:
        The prompts, and the configuration with their number and, for a benchmark, the origin and hash of the list.
    """
    count = config["prompts"]
    if count is None:
        count = len(source) if isinstance(source, Sized) else GRAMMAR_PROMPTS
    prompts = source.take(count, config["prompt_seed"])
    taken = {**config, "prompts": len(prompts)}
    record = getattr(source, "record", None)
    return prompts, taken if record is None else {**taken, "benchmark_list": record()}

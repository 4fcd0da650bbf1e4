"""Entry points of the benchmark's command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from addiffusion_env.agents.policy_file import shipped
from addiffusion_env.backbones import traits_of
from addiffusion_env.errors import ConfigError
from addiffusion_lab.bench.against import run as run_against
from addiffusion_lab.bench.instant import make_instant
from addiffusion_lab.bench.measure import ArmResult, measure, setting, table, write_json
from addiffusion_lab.bench.setup import BenchmarkSetup, load_options, make_setup


def run_named(chosen: argparse.Namespace) -> None:
    """Measures a registered backbone with its default weights.

    Raises:
        ConfigError: for ``--instant`` with a backbone that is not embedded in the package, a wrong ``--load``, or
            nothing to measure.
    """
    if chosen.instant and not traits_of(chosen.backbone).embedded:
        raise ConfigError(
            f"--instant replaces the networks of the embedded backbone, got --backbone {chosen.backbone}",
            "leave --backbone out",
        )
    load = load_options(chosen.load)
    if chosen.instant and load.get("backbone_options"):
        raise ConfigError(
            f"--instant replaces networks of torch, got --load {' '.join(chosen.load)}", "leave backbone_options out"
        )
    samplers = chosen.samplers
    if samplers is None:
        samplers = [f"policy:{name}" for name in shipped() if name == chosen.backbone]
    if not samplers and not chosen.arms:
        raise ConfigError("nothing to measure: neither --arms nor --samplers names anything", "leave one of them out")
    if chosen.against is not None:
        return run_against(chosen, samplers, load)
    setup = make_setup(chosen.backbone, chosen.lanes[0], chosen.steps, chosen.preview_every, chosen.images, **load)
    if chosen.instant:
        make_instant(setup.backbone, setup.scorers)
    run_setup(setup, chosen, samplers)


def run_setup(setup: BenchmarkSetup, chosen: argparse.Namespace, samplers: Sequence[str]) -> list[ArmResult]:
    """Measures a setup at each number of lanes, prints the table and writes the JSON."""
    results: list[ArmResult] = []
    for lanes in chosen.lanes:
        sized = replace(setup, lanes=lanes, images=chosen.images or 2 * lanes)
        results += measure(sized, chosen.arms, samplers, chosen.rounds, chosen.clock)
    where = setting(setup.backbone.device, chosen.clock, getattr(chosen, "load", ()))
    print(f"{setup.backbone.name}, {setup.steps} steps, {', '.join(f'{key} {value}' for key, value in where.items())}")
    print(table(results))
    if chosen.json is not None:
        write_json(chosen.json, results, where)
    return results

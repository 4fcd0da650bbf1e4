"""What the command line of the bench runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from addiffusion_env.agents.policy_file import shipped
from addiffusion_lab.bench.bed import Bed, make_bed
from addiffusion_lab.bench.measure import ArmResult, measure
from addiffusion_lab.bench.report import setting, table, write_json


def run_named(chosen: argparse.Namespace) -> None:
    """Measures a registered backbone with its own weights."""
    bed = make_bed(chosen.backbone, chosen.lanes[0], chosen.steps, chosen.look_every, chosen.images)
    methods = chosen.methods or [f"policy:{name}" for name in shipped() if name == chosen.backbone]
    run_bed(bed, chosen, methods)


def run_bed(bed: Bed, chosen: argparse.Namespace, methods: Sequence[str]) -> list[ArmResult]:
    """Measures a bed at each number of lanes, prints the table and writes the JSON."""
    results: list[ArmResult] = []
    for lanes in chosen.lanes:
        sized = replace(bed, lanes=lanes, images=chosen.images or 2 * lanes)
        results += measure(sized, chosen.arms, methods, chosen.rounds, chosen.clock)
    where = setting(bed.backbone.device, chosen.clock)
    print(f"{bed.backbone.name}, {bed.steps} steps, {', '.join(f'{key} {value}' for key, value in where.items())}")
    print(table(results))
    if chosen.json is not None:
        write_json(chosen.json, results, where)
    return results

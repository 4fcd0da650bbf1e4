"""What a training costs before it starts: recording, learning on the table, the live environment, the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from addiffusion_env.agents.tabular_training import TabularConfig, learn_on_table, make_mdp
from addiffusion_env.agents.training import algorithm_and_table
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.lanes import lanes_of
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.envs.settings import EnvSettings, load_backbone, load_scorers
from addiffusion_env.evaluation.cost import (
    RECORD_BYTES,
    RunCost,
    Stage,
    Work,
    measure_units,
    recording_work,
    table_bytes,
    work_range,
)
from addiffusion_env.observations import needs_features, needs_preview
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers import make_sampler
from addiffusion_env.samplers.base import placed
from addiffusion_env.scorers.image_scores import ImageScorers
from addiffusion_env.tabular.table import NUMBERS, AttemptTable

ATTEMPTS_OF_A_POLICY = 1.5
"""Attempts of an image by a policy that is not trained yet, where its process allows several."""
TABLE_ROWS = 32
"""Images of the made-up table on which learning is timed; its speed does not depend on their number."""


def training_cost(config: Mapping[str, Any]) -> RunCost:
    """The stages of ``train_sb3.py`` from the beginning, with unit costs measured on this machine.

    Args:
        config: of the training; see :class:`.TrainingConfig`.

    Raises:
        WeightsError: when the model or a scorer cannot be loaded.
    """
    settings, lanes = EnvSettings.of(**config["env"]), config["lanes"]
    backbone = load_backbone(settings)
    scorers = load_scorers(backbone, settings.scorers)
    process = settings.process(backbone.capabilities, backbone.name)
    prompts = settings.prompt_source().take(lanes_of(lanes)[0], seed=0)
    units = measure_units(backbone, scorers, process, prompts, lanes)
    stages: list[Stage] = []
    tabular = algorithm_and_table(config)[1]
    if tabular is not None:
        one = recording_work(backbone, process, tabular.attempts)
        features = needs_features(settings.keys())
        width = scorers.clip_dim + scorers.dino_dim + (backbone.capabilities.feature_dim or 0) * features + len(NUMBERS)
        bytes_each = table_bytes(process, tabular.attempts, width)
        stages.append(Stage.known("record", one.times(tabular.images), disk=bytes_each * tabular.images))
        table = blank_table(prompts, backbone, scorers, process, tabular.attempts, features)
        pace, imitation = seconds_per_decision(table, settings, tabular, config)
        learning = imitation + pace * tabular.total_timesteps
        stages.append(Stage.known("learn on the table", Work(), fixed=learning))
    if config["total_timesteps"]:
        stages.append(_live(config["total_timesteps"], backbone, process, settings))
    if tabular is not None and tabular.held_out:
        held_out = one.times(tabular.held_out)
        stages.append(Stage.known("held-out frontier", held_out, disk=bytes_each * tabular.held_out))
    if config["report"] is not None:
        stages.append(_report(config["report"], backbone, process, settings))
    images = sum(stage.expected.images for stage in stages)
    return RunCost(tuple(stages), units, round(images))


def _live(decisions: int, backbone: Backbone, process: ProcessConfig, settings: EnvSettings) -> Stage:
    """Decisions of which each takes its share of an attempt."""
    attempt = Work.attempt(backbone, process, needs_preview(settings.keys()))
    each = 1 + len(process.decision_steps) + process.check_finished
    least = attempt.times(decisions / each)
    return Stage("live environment", least, least, least)


def _report(report: Mapping[str, Any], backbone: Backbone, process: ProcessConfig, settings: EnvSettings) -> Stage:
    """The images of the policy and of its comparators."""
    prompts = report.get("prompts") or 128
    again = process.refine.limit + 1 if process.refine.enabled and process.check_finished else 1
    one = Work.attempt(backbone, process, needs_preview(settings.keys()))
    least, most = replace(one, images=1), replace(one.times(again), images=1)
    expected = replace(one.times(min(again, ATTEMPTS_OF_A_POLICY)), images=1)
    samplers = [make_sampler(spec) for spec in report.get("samplers") or ()]
    for sampler in samplers:
        few, many = work_range(sampler, placed(sampler, process, backbone), backbone)
        least, most, expected = least + few, most + many, expected + (few + many).times(0.5)
    disk = RECORD_BYTES * prompts * (1 + len(samplers))
    return Stage("report", least.times(prompts), most.times(prompts), expected.times(prompts), disk=disk)


def seconds_per_decision(
    table: AttemptTable, settings: EnvSettings, tabular: TabularConfig, config: Mapping[str, Any]
) -> tuple[float, float]:
    """Seconds of a decision of the algorithm on a table, measured over one rollout and its update, and of imitation."""
    decisions = tabular.lanes * int(tabular.ppo.get("n_steps", 2048))
    short = replace(tabular, total_timesteps=decisions)
    mdp = make_mdp(table, settings)

    def seconds(imitate: int) -> float:
        begun, chosen = time.perf_counter(), replace(short, imitate=imitate)
        learn_on_table(mdp, settings, chosen, config["algorithm"], config["seed"], None, config["device"])
        return time.perf_counter() - begun

    plain = seconds(0)
    return plain / decisions, max(0.0, seconds(tabular.imitate) - plain) if tabular.imitate else 0.0


def blank_table(
    prompts: Sequence[Prompt],
    backbone: Backbone,
    scorers: ImageScorers,
    process: ProcessConfig,
    attempts: int,
    features: bool,
) -> AttemptTable:
    """A made-up table of the shape that a recording has, to time learning on it; its numbers are random."""
    rng, steps = np.random.default_rng(0), process.decision_steps
    shape = (TABLE_ROWS, attempts, 2 * len(steps) + 2)
    shown = [prompts[row % len(prompts)] for row in range(TABLE_ROWS)]
    dims = {
        "clip_image": scorers.clip_dim,
        "dino": scorers.dino_dim,
        "features": (backbone.capabilities.feature_dim or 0) * features,
    }
    vectors: dict[str, Any] = {
        name: rng.standard_normal((*shape, width)).astype(np.float32) for name, width in dims.items()
    }
    numbers: dict[str, Any] = {name: rng.random(shape).astype(np.float32) for name in NUMBERS}
    return AttemptTable(
        prompts=tuple(prompt.text for prompt in shown),
        prompt_ids=tuple(f"{row}" for row in range(TABLE_ROWS)),
        tasks=tuple(prompt.task for prompt in shown),
        constraints=np.zeros(TABLE_ROWS),
        seeds=np.zeros(TABLE_ROWS, int),
        steps=steps,
        log_snr=np.linspace(-3, 3, shape[2]),
        start_log_snr=np.array(-4.0),
        clip_text=scorers.clip.embed_texts(shown).numpy(),
        **vectors,
        **numbers,
    )

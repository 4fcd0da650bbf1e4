"""The policies of the study: three seeds, one without each observation key or refinement, one of another reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from addiffusion_env.agents.policy_file import load_policy
from addiffusion_env.agents.replay import (
    ReplayConfig,
    greedy,
    held_out_words,
    learn_on_table,
    make_walk,
    measured_frontier,
)
from addiffusion_env.agents.training import export_policy
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.rollouts.outcomes import Outcomes, play_table
from addiffusion_env.rollouts.table import TryTable
from addiffusion_env.rollouts.walk import Walk

ALGORITHM = "maskable_ppo"


@dataclass(frozen=True)
class Variant:
    """One policy to train.

    Attributes:
        name: of its folder.
        seed: of training.
        changes: to the environment's settings.
        refine: whether it may refine.
    """

    name: str
    seed: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)
    refine: bool = True


def variants(settings: EnvSettings, seeds: Sequence[int]) -> list[Variant]:
    """The seeds first, then the ablations."""
    keys = settings.keys()
    without = [
        Variant(f"without-{key}", changes={"observation_keys": [other for other in keys if other != key]})
        for key in keys
    ]
    return [
        *(Variant(f"seed-{seed}", seed) for seed in seeds),
        *without,
        Variant("without-refine", refine=False),
        Variant("reward-as-published", changes={"reward": {"preset": "as_published"}, "price": 0.014}),
    ]


def trained(
    variant: Variant,
    table: TryTable,
    held_out: TryTable,
    environment: Mapping[str, Any],
    replay: ReplayConfig,
    out: Path,
) -> Path:
    """The folder of a variant's policy; trained on ``table``, and measured on ``held_out``, when it is not there."""
    folder = out / variant.name
    if (folder / "config.json").is_file():
        return folder
    env = {**environment, **variant.changes}
    settings = EnvSettings.of(**env)
    walk = walk_for(variant, table, settings)
    folder.mkdir(parents=True, exist_ok=True)
    learner = learn_on_table(walk, settings, replay, ALGORITHM, variant.seed, folder)
    config = {"env": env, "algorithm": ALGORITHM, "seed": variant.seed, "run_dir": variant.name}
    frontier = measured_frontier(learner.policy, walk_for(variant, held_out, settings), settings)
    export_policy(folder, learner, config, frontier, held_out_words(held_out))
    print(f"trained {variant.name}: {learner.num_timesteps} decisions", flush=True)
    return folder


def walk_for(variant: Variant, table: TryTable, settings: EnvSettings) -> Walk:
    """The decision process of a variant on a table."""
    return make_walk(table, settings, variant.refine)


def play(folder: Path, variant: Variant, table: TryTable, prices: Sequence[float]) -> list[Outcomes]:
    """A trained variant's outcomes on a table, at each price."""
    policy, config = load_policy(folder)
    settings = EnvSettings.of(**config.environment)
    walk = walk_for(variant, table, settings)
    observer = table.observer(list(config.observation))
    return [play_table(walk, greedy(policy), observer, price) for price in prices]


def shuffled(table: TryTable, seed: int = 0) -> TryTable:
    """The table with prompts' embeddings dealt to other prompts: what a policy does that reads the wrong prompt."""
    order = np.random.default_rng(seed).permutation(len(table))
    return replace(table, clip_text=table.clip_text[order])

"""Runs the study and writes ``docs/results.md``; every part that is there already is read, not made again.

python -m addiffusion_lab.study --out runs/study            about three hours on two cores
python -m addiffusion_lab.study --out /tmp/s --prompts 32 --pictures 32 --timesteps 20000   a small one
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from addiffusion_env import ENVIRONMENTS, __version__
from addiffusion_env.agents.policy_file import RESULTS_FILE
from addiffusion_env.agents.tabular_training import TabularConfig, record_held_out, record_table
from addiffusion_env.agents.training import IDENTITY_FILE, changed_since
from addiffusion_env.backbones.devices import instruction_set
from addiffusion_env.backbones.identity import identity_of, listed
from addiffusion_env.baselines.prompt_rule import names_colour
from addiffusion_env.envs.loading import load_backbone, load_scorers
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import ResumeError
from addiffusion_env.evaluation.judges import Judges
from addiffusion_env.evaluation.manifest import write_text
from addiffusion_env.prompts.base import Prompt
from addiffusion_env.rewards.composite import make_reward
from addiffusion_env.scorers.liking import Liking
from addiffusion_env.tabular.recorder import Recorder
from addiffusion_env.tabular.table import AttemptTable
from addiffusion_lab.study import claims, page
from addiffusion_lab.study.arms import (
    Arm,
    Clock,
    best_of,
    distinct,
    fixed,
    own_tries,
    played,
    prompt_rule,
    retry,
)
from addiffusion_lab.study.policies import Variant, mdp_for, play, shuffled, trained, variants
from addiffusion_lab.study.region import region_arms
from addiffusion_lab.study.stories import collapse_table, films, seeds_table
from addiffusion_lab.study.timing import measure_clock
from addiffusion_lab.study.tries import Tries, TriesRecorder

PRICES = (0.0, 0.001, 0.002, 0.004, 0.007, 0.012, 0.02, 0.03)
THRESHOLDS = (-1.1, -0.52, 0.0, 0.36, 0.6, 0.82, 1.0, 1.19, 1.4)
CHANCES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
SEEDS = (0, 1, 2)
PPO = {"n_steps": 16, "batch_size": 512, "n_epochs": 4, "learning_rate": 0.001, "gamma": 1.0, "ent_coef": 0.005}
LIKING = {"clip_weight": 0.8, "clip_centre": 0.855, "clip_scale": 0.07}
BELIEF = {"belief": "emoji"}
LEGS = {"": Liking(), " by liking": Liking.of(LIKING), " by belief": Liking.of(BELIEF)}
"""What comparators may choose their tries by: preference as their papers do, and this project's own better scores."""
ENVIRONMENT = ENVIRONMENTS["AdDiffusion-Emoji-v1"]
UNCALIBRATED = Variant(
    "liking-not-belief",
    changes={
        "refine": {"preset": "again", "limit": 4, "liking": LIKING},
        "reward": {"preset": "default", "terminal_bonus": {"centre": 0.6, "width": 0.4, **LIKING}},
        "observation_keys": ["clip", "timestep", "quality", "price", "tries"],
    },
)
"""The same score for every prompt: what the belief adds."""


@dataclass(frozen=True)
class Material:
    """What was recorded.

    Attributes:
        prompts: the P test prompts.
        train: table of training pictures, without verdicts.
        held_out: table of further training prompts, to measure what a policy spends on prompts it did not train on.
        test: table of the test pictures, with verdicts.
        fixed: steps -> tries of fixed-step DDIM.
        clock: what the parts of a picture cost.
        region: refinement of a region alone, on the first prompts.
    """

    prompts: list[Prompt]
    train: AttemptTable
    held_out: AttemptTable
    test: AttemptTable
    fixed: dict[int, Tries]
    clock: Clock
    region: list[Arm]


def gather(options: argparse.Namespace) -> Material:
    """Records, or reads, everything that needs the denoiser."""
    settings = EnvSettings.of(**ENVIRONMENT)
    backbone = load_backbone(settings)
    scorers = load_scorers(backbone, settings.scorers)
    process = settings.process(backbone.capabilities, backbone.name)
    judge = Judges.of(["emoji_detector"], backbone.device).verdicts

    prompts = (
        EnvSettings.of(**{**ENVIRONMENT, "prompt_options": {"split": "test"}})
        .prompt_source()
        .take(options.prompts, seed=0)
    )
    hold(options.out, identity_of(backbone=backbone, scorers=scorers, process=process, judge=judge))
    tabular = TabularConfig(pictures=options.pictures, held_out=options.pictures // 2)
    train = record_table(settings, tabular, options.out / "train_table", 16)
    held_out = record_held_out(settings, tabular, options.out / "held_out_table", 16)
    assert held_out is not None  # the grammar holds thousands
    recorder = Recorder(backbone, scorers, process, tabular.attempts, judge)
    test = recorder.record_shards(
        [(prompt, 0) for prompt in prompts],
        options.out / "test_table",
        note=lambda done: print(f"test table: {done} of {len(prompts)}", flush=True),
    )
    tries = TriesRecorder(backbone, scorers, judge, process, prompts, options.out / "tries")
    surest = [
        (LEGS[""], max(THRESHOLDS)),
        (LEGS[" by liking"], max(THRESHOLDS)),
        (LEGS[" by belief"], odds(max(CHANCES))),
    ]
    made = {
        steps: tries.record(steps, count, until)
        for steps, count, until in ((8, 4, surest), (4, 3, None), (6, 1, None), (12, 1, None), (50, 1, None))
    }
    clock_file = options.out / "clock.json"
    if not clock_file.is_file():
        clock = measure_clock(backbone, scorers, prompts[:16])
        write_text(clock_file, json.dumps(asdict(clock), indent=1))
    clock = Clock(**json.loads(clock_file.read_text(encoding="utf-8")))
    region = region_arms(backbone, scorers, judge, process, prompts[: min(128, len(prompts))], options.out / "region")
    return Material(prompts, train, held_out, test, made, clock, region)


def hold(out: Path, identity: dict[str, Any]) -> None:
    """Holds a folder to the model, scorers and judge that its recordings were begun with.

    Raises:
        ResumeError: when it was begun with others, or before they were kept.
    """
    path = out / IDENTITY_FILE
    lines = changed_since(path, identity)
    if lines or (out.is_dir() and any(out.iterdir()) and not path.is_file()):
        whose = f"of another model, scorer or judge: {listed(lines)}" if lines else "that do not say of which model"
        raise ResumeError(f"{out} holds recordings {whose}", "choose another --out, or delete the folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(identity, indent=1))


def comparators(material: Material) -> dict[str, list[Arm]]:
    """The families that the claims are held against: all fixed-step DDIM, trailing, guided throughout."""
    tries, text = material.fixed, material.test.clip_text
    colour = np.array([names_colour(prompt) for prompt in material.prompts])
    liked = {
        (steps, label): liking(tries[steps].preference, tries[steps].clip_score, text)
        for steps in (4, 8)
        for label, liking in LEGS.items()
    }
    best = [best_of(tries[4], count, liked[4, label], label) for label in LEGS for count in (2, 3)]
    return {
        "fixed DDIM": [fixed(tries[steps]) for steps in sorted(tries)],
        "prompt rule": [prompt_rule(tries[a], tries[b], colour) for a, b in ((6, 4), (8, 6), (12, 8), (12, 6))],
        "best of n": [fixed(tries[4]), *best],
        **{
            f"threshold-retry{label}": [retry(tries[8], *leg, label) for leg in legs(label, liked[8, label])]
            for label in LEGS
        },
    }


def odds(chance: float) -> float:
    """Log-odds of a chance."""
    return float(np.log(chance / (1 - chance)))


def legs(label: str, liked: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Thresholds in the unit of a score, each with the score."""
    return [(float(at), liked) for at in ([odds(chance) for chance in CHANCES] if "belief" in label else THRESHOLDS)]


def same_process(material: Material, environment: dict[str, Any]) -> dict[str, list[Arm]]:
    """Rules without learning on the policy's own process: what its schedule and its score give by themselves."""
    mdp = mdp_for(Variant("own"), material.test, EnvSettings.of(**environment))
    table, end = mdp.table, mdp.table.finish
    own = own_tries(mdp)
    spent, calls = table.nfe[:, :, end], table.calls[:, :, end]
    found: dict[str, list[Arm]] = {}
    for label, liking in LEGS.items():
        if not label:
            continue
        liked = liking(own.preference, own.clip_score, table.clip_text)
        thresholds = (-0.5, 0.0, 0.4, 0.8, 1.2, 1.6, 2.0) if "liking" in label else [odds(c) for c in CHANCES]
        arms = []
        for threshold in (-99.0, *thresholds):
            arm = retry(own, threshold, liked, "")
            made, rows = arm.finishes.astype(int), np.arange(len(own.correct))
            what = f"{1 / (1 + np.exp(-threshold)):.2f}" if "belief" in label else f"{threshold:g}"
            name = "one try" if threshold == -99 else f"retry{label} below {what}"
            arms.append(
                Arm(f"{name} (own process)", arm.correct, np.cumsum(spent, 1)[rows, made - 1],
                    np.cumsum(calls, 1)[rows, made - 1], arm.looks, arm.finishes)
            )  # fmt: skip
        found[f"retry{label} on the policy's own process"] = arms
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs everything and writes the page."""
    options = _options(arguments)
    material = gather(options)
    tabular = TabularConfig(pictures=options.pictures, total_timesteps=options.timesteps, ppo=PPO)
    short = TabularConfig(pictures=options.pictures, total_timesteps=options.ablation_timesteps, ppo=PPO)
    every = [*variants(EnvSettings.of(**ENVIRONMENT), SEEDS), UNCALIBRATED]
    folders = {
        v.name: trained(
            v,
            material.train,
            material.held_out,
            ENVIRONMENT,
            tabular if v.name.startswith("seed") else short,
            options.out / "policies",
        )
        for v in every
    }
    report(material, {v.name: v for v in every}, folders, options)


def report(
    material: Material, every: dict[str, Variant], folders: dict[str, Path], options: argparse.Namespace
) -> None:
    """Plays every policy on the test table and writes page, plots and figures."""
    rng = np.random.default_rng(0)
    arms: dict[str, list[Arm]] = {}
    for name, variant in every.items():
        prices = [price for price in PRICES if "published" not in name or price == 0.012]
        outcomes = play(folders[name], variant, material.test, prices)
        arms[name] = [played(f"{name}@{price:g}", out) for price, out in zip(prices, outcomes, strict=True)]
    main_policy, reference = arms["seed-0"], fixed(material.fixed[50])
    families, own = comparators(material), same_process(material, ENVIRONMENT)
    middle = PRICES.index(0.004)
    demands = material.test.demands.astype(float)
    hardness = 1 - material.test.correct[:, :, material.test.finish].mean(1)
    misread = shuffled(material.test)

    def third(seed: int) -> claims.Claim:
        name = f"seed-{seed}"
        [wrong] = play(folders[name], every[name], misread, [PRICES[middle]])
        return claims.h3(arms[name][middle], played("shuffled", wrong), demands, hardness, rng)

    second, found = claims.h2(main_policy, families, material.clock, rng)
    fourth, _ = claims.h4(main_policy, arms["without-refine"], rng)
    per_seed = {0: (claims.h1(main_policy, reference), second, third(0))}
    for seed in SEEDS[1:]:
        mine = arms[f"seed-{seed}"]
        per_seed[seed] = (
            claims.h1(mine, reference),
            claims.h2(mine, families, material.clock, rng)[0],
            third(seed),
        )
    settled = [*per_seed[0], fourth]
    docs = options.docs
    page.save(page.frontier_plot({"policy": main_policy, **families, **own}, material.clock), docs / "frontier.png")
    curves = {f"seed {s}": json.loads((folders[f"seed-{s}"] / "table.json").read_text(encoding="utf-8")) for s in SEEDS}
    page.save(page.curve_plot(curves), docs / "learning.png")
    shown = films(folders["seed-0"], material.prompts[:12], docs)
    _, own_gains = claims.h2(main_policy, own, material.clock, rng)
    listed = distinct(arm for family in (main_policy, *families.values(), *own.values()) for arm in family)
    best_rule = max(families["threshold-retry"], key=lambda arm: (arm.nfe.mean() <= 9.5) * arm.correct.mean())
    sections = [
        page.Section("How this page came about", _provenance(material, options)),
        page.Section("The claims", page.verdicts(settled)),
        page.Section("Frontier", ["![frontier](frontier.png)", "", *page.arm_table(listed, material.clock, rng)]),
        page.Section("At equal cost", page.gain_tables(found)),
        page.Section(
            "What is learned, and what the process gives by itself",
            [
                "The policy's process is cheap in itself: guidance in one evaluation of six, tries that are checked. "
                "A rule without learning on the same process (look at the finished picture, try again while it is "
                "liked less than a threshold) is the comparator that only learning can beat:",
                *page.gain_tables(own_gains),
            ],
        ),
        page.Section(
            "Refining a region alone",
            [
                f"One try on the policy's process, first {len(material.region[0].correct)} prompts; while the "
                "preview's preference is below 0 the region of all phrases (union), or of the weakest, is drawn anew "
                "and kept when it scores better, at most twice:",
                "",
                *page.arm_table(material.region, material.clock, rng),
            ],
        ),
        page.Section("Seeds", [*seeds_table(per_seed), "", "![learning curves](learning.png)"]),
        page.Section(
            "Ablations",
            [
                "Each policy trained anew without one thing, on the same table "
                f"({options.ablation_timesteps} decisions; seeds: {options.timesteps}), at price {PRICES[middle]:g}:",
                "",
                *page.arm_table(
                    [row[middle] for name, row in arms.items() if "published" not in name], material.clock, rng
                ),
            ],
        ),
        page.Section(
            "Collapse watch",
            collapse_table(material.test, every, folders, make_reward(ENVIRONMENT["reward"]), PRICES[middle]),
        ),
        page.Section(
            "By task",
            page.task_table([main_policy[middle], best_rule, fixed(material.fixed[8]), reference], material.test.tasks),
        ),
        page.Section("What the policy did", shown),
        page.Section("What did not work, and what stands in the way", _lessons()),
    ]
    page.write(docs / "results.md", "Results on the emoji world", sections)
    write_text(
        folders["seed-0"] / RESULTS_FILE, json.dumps(page.card_results(main_policy, material.clock, rng), indent=1)
    )
    figures = {arm.name: [float(arm.correct.mean()), float(arm.nfe.mean())] for row in arms.values() for arm in row}
    write_text(options.out / "results.json", json.dumps(figures, indent=1))
    print("\n".join(page.verdicts(settled)))
    print(f"written: {docs / 'results.md'}")


def _provenance(material: Material, options: argparse.Namespace) -> list[str]:
    clock = material.clock
    return [
        f"`python -m addiffusion_lab.study {' '.join(sys.argv[1:])}` (addiffusion {__version__}, torch "
        f"{torch.__version__}, {time.strftime('%Y-%m-%d')}), on two CPU cores ({instruction_set()}): what this machine "
        "gave; another instruction set differs in last digits, so a policy trained there is another one.",
        "",
        f"- {len(material.prompts)} test prompts of the emoji grammar (`EmojiPrompts(split='test').take("
        f"{len(material.prompts)}, seed=0)`), picture seed 0, never seen in training; judged by the emoji detector, "
        "which neither reward nor policy ever sees. Intervals are 95 %, paired over prompts.",
        f"- Policies: MaskablePPO on recorded tries of {len(material.train)} training prompts; their test episodes are "
        "read from a table of the test prompts' tries, which are the engine's own episodes "
        "(`tests/tabular/test_tabular_mdp.py`).",
        "- Comparators: DDIM, trailing, guided throughout. Thresholds and numbers of tries are chosen on the test "
        "prompts themselves, which favours the comparators.",
        "- One NFE is a guided evaluation (two network calls); an unguided one is half.",
        "- Seconds are no wall clock of whole pictures. They are added up from unit costs, measured side by side at 16 "
        f"lanes: {clock.call:.1f} ms a network call, {clock.look:.1f} a look, {clock.decode:.1f} a full decode, "
        f"{clock.score:.1f} to score it.",
    ]


def _lessons() -> list[str]:
    text = (Path(__file__).parent / "lessons.md").read_text(encoding="utf-8")
    return text.strip().splitlines()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m addiffusion_lab.study", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="where recordings and policies go")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the page goes")
    parser.add_argument("--prompts", type=int, default=1024, help="test prompts")
    parser.add_argument("--pictures", type=int, default=512, help="training prompts that are recorded")
    parser.add_argument("--timesteps", type=int, default=600_000, help="decisions of each seed's training")
    parser.add_argument("--ablation-timesteps", type=int, default=300_000, help="decisions of each ablation's")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

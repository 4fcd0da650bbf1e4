"""What learning adds: trained policies against every rule on their own process, at equal NFE, on unseen prompts.

python -m addiffusion_lab.claims.against_rules runs/emoji_full runs/seed1 runs/seed2

The rules (:mod:`addiffusion_env.tabular.rules`) resample while the finished image scores below a threshold, with any
number of attempts and of early exits among them; best-of-n is among them. They are chosen on the prompts of training,
by the same calibrated probability that the policies are rewarded by, and a mixture of two of them may be drawn. All
are played on one table of attempts of test prompts, whose episodes equal the engine's, and judged by a scorer that
neither saw.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from addiffusion_env.agents.learned import load_sampler
from addiffusion_env.agents.tabular_training import greedy, make_mdp
from addiffusion_env.config import friendly
from addiffusion_env.envs.settings import EnvSettings, refine_config
from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.frontier import FrontierGain, Pairing, gains, mixture
from addiffusion_env.evaluation.manifest import write_text
from addiffusion_env.evaluation.rendering import to_markdown
from addiffusion_env.evaluation.sections import Section, Table
from addiffusion_env.evaluation.statistics import share_interval
from addiffusion_env.prompts import Prompt
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts
from addiffusion_env.scorers import SCORERS
from addiffusion_env.tabular.fit_calibrator import read_tables
from addiffusion_env.tabular.outcomes import Outcomes, play_table
from addiffusion_env.tabular.recorder import recorder_of
from addiffusion_env.tabular.rules import RuleOutcomes, frontier, play_rule, rules_of, thresholds_of
from addiffusion_env.tabular.table import AttemptTable
from addiffusion_lab.claims.calibration import calibration_section, calibrations

NFE_POINTS = (1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0, 5.0)
OUT = Path("runs/against_rules")
"""Where the attempts of test prompts are recorded."""
COSTS = 9
"""Costs per NFE at which a policy is played, evenly over the range that it was trained for."""


@dataclass(frozen=True, eq=False)
class Study:
    """Policies and rules on one table of test prompts.

    Attributes:
        policies: run -> its outcomes at :data:`COSTS` costs per NFE, by increasing cost.
        costs: run -> these costs.
        rules: outcomes of the rules.
        table: the attempts of the test prompts.
    """

    policies: Mapping[str, Sequence[Outcomes]]
    costs: Mapping[str, np.ndarray]
    rules: Sequence[RuleOutcomes]
    table: AttemptTable


def record_judged(
    settings: EnvSettings, attempts: int, prompts: Sequence[Prompt], judge: str, folder: Path, lanes: int, **more: Any
) -> AttemptTable:
    """Records attempts of prompts under a process, judged; recorded shards are read instead.

    Args:
        settings: of the environment.
        attempts: of each prompt.
        prompts: one image of each.
        judge: registry name of the scorer that gives the verdicts.
        folder: of the shards.
        lanes: images at once.
        **more: further fields of the recorder.
    """
    scorer = SCORERS.load(judge).from_pretrained()

    def verdicts(images: Sequence[torch.Tensor], of: Sequence[Prompt]) -> list[bool]:
        return [bool(value) for value in scorer.score(torch.stack(list(images)), list(of))]

    recorder = replace(recorder_of(settings, attempts), judge=verdicts, **more)
    return recorder.record_shards([(prompt, 0) for prompt in prompts], folder, lanes)


def study(runs: Sequence[Path], test: AttemptTable) -> Study:
    """Plays the policies of some runs, and the rules chosen on the first run's training table.

    Raises:
        ConfigError: for a run without a table of training prompts.
        WeightsError: for one without a policy.
    """
    policies, costs = {}, {}
    for run in runs:
        sampler = load_sampler(run)
        settings = sampler.settings()
        mdp, observer = make_mdp(test, settings), test.observer(settings.keys())
        costs[run.name] = np.linspace(*settings.cost_range(), COSTS)
        decide = greedy(sampler.policy)
        policies[run.name] = [play_table(mdp, decide, observer, float(cost)) for cost in costs[run.name]]
    settings = load_sampler(runs[0]).settings()
    chosen = choose_rules(read_tables(runs[0] / "table"), settings)
    mdp = make_mdp(test, settings)
    return Study(policies, costs, [play_rule(mdp, one.rule) for one in chosen], test)


def choose_rules(table: AttemptTable, settings: EnvSettings) -> list[RuleOutcomes]:
    """The rules on the frontier of calibrated probability and NFE on a table."""
    mdp = make_mdp(table, settings)
    return frontier([play_rule(mdp, rule) for rule in rules_of(mdp, thresholds_of(mdp))])


def compare(found: Study, run: str, rng: np.random.Generator) -> dict[float, FrontierGain]:
    """A policy's gain over the rules at each of :data:`NFE_POINTS` within its reach; neighbouring costs are mixed."""
    quality = np.stack([outcomes.correct for outcomes in found.policies[run]])
    spent = np.stack([outcomes.nfe for outcomes in found.policies[run]])
    names = [_words(one) for one in found.rules]
    rules = [np.stack([getattr(one.outcomes, name) for one in found.rules]) for name in ("correct", "nfe")]
    means = spent.mean(1)
    points = [at for at in NFE_POINTS if means.min() <= at <= means.max()]
    pairings = [
        Pairing(weights @ quality, weights @ spent, names, *rules) for weights in (mixture(means, at) for at in points)
    ]
    return dict(zip(points, gains(pairings, rng), strict=True)) if pairings else {}


def branches(outcomes: Outcomes, least: float = 0.01) -> Table:
    """The decision tree of a policy: each sequence of actions, its share of the images, NFE and correctness."""
    words = {0: "whole attempt", 1: "early exit", 2: "resample"}
    counted = Counter(outcomes.actions)
    rows = []
    for actions, number in counted.most_common():
        share = number / len(outcomes.actions)
        if share < least:
            break
        at = np.array([one == actions for one in outcomes.actions])
        told = [
            "accept" if n and actions[n - 1] != 2 and action == 1 else words[action] for n, action in enumerate(actions)
        ]
        rows.append(
            (", ".join(told), f"{share:.1%}", f"{outcomes.nfe[at].mean():.2f}", f"{outcomes.correct[at].mean():.3f}")
        )
    rest = 1 - sum(float(row[1].rstrip("%")) for row in rows) / 100
    if rest > 0.0005:
        rows.append(("other sequences", f"{rest:.1%}", "", ""))
    return Table(("actions", "share of images", "NFE", "correct"), tuple(rows))


def study_section(found: Study, seed: int = 0) -> Section:
    """The section of the page of results."""
    rng = np.random.default_rng(seed)
    rows, table = [], []
    for run, played in found.policies.items():
        for cost, outcomes in zip(found.costs[run], played, strict=True):
            table.append(_row(f"{run}@{cost:.4g}", outcomes))
        for at, gain in compare(found, run, rng).items():
            between = " and ".join(dict.fromkeys(gain.between))
            rows.append(
                (
                    run,
                    f"{at:g}",
                    f"{gain.frontier + gain.gain.estimate:.3f}",
                    f"{gain.frontier:.3f}",
                    str(gain.gain),
                    between,
                )
            )
    # Rules whose NFE are nearly the same are shown once.
    shown = {round(one.nfe, 1): one for one in found.rules}.values()
    rules = [_row(_words(one), one.outcomes) for one in shown]
    first = next(iter(found.policies))
    middle = found.policies[first][COSTS // 2]
    return Section(
        "What learning adds",
        (
            f"{len(found.table)} test prompts, {found.table.attempts} recorded attempts of each; episodes are "
            "read from this table and equal the engine's. Rules are chosen on the prompts of training by calibrated "
            "probability. Intervals are 95 %, each for itself, paired over prompts; the mixture of rules is chosen on "
            "the test prompts, which favours the rules.",
            Table(("policy", "NFE", "policy correct", "rules correct", "difference", "rules"), tuple(rows)),
            "Each policy at its costs per NFE:",
            Table(HEAD, tuple(table)),
            "The rules:",
            Table(HEAD, tuple(rules)),
            f"What {first} does at cost per NFE {found.costs[first][COSTS // 2]:.4g}:",
            branches(middle),
        ),
    )


HEAD = ("sampler", "correct", "NFE", "finished images scored", "preference", "CLIP score")


def _row(name: str, outcomes: Outcomes) -> tuple[str, ...]:
    return (
        name,
        str(share_interval(outcomes.correct)),
        f"{outcomes.nfe.mean():.2f}",
        f"{outcomes.finishes.mean():.2f}",
        f"{outcomes.preference.mean():.2f}",
        f"{outcomes.clip_score.mean():.3f}",
    )


def _words(one: RuleOutcomes) -> str:
    rule = one.rule
    early = f", the first {rule.early} early exits" if rule.early else ""
    check = "best of" if np.isinf(rule.threshold) else f"accept from utility {rule.threshold:.2f}, at most"
    return f"{check} {rule.attempts} attempts{early}"


def learning_sections(runs: Sequence[Path], test: AttemptTable) -> list[Section]:
    """What learning adds, and how well the calibrator of the first run agrees with the judge, on one table."""
    settings = load_sampler(runs[0]).settings()
    measured = calibrations(test, refine_config(settings.refine).utility)
    return [study_section(study(runs, test)), calibration_section(measured)]


@friendly
def main(arguments: Sequence[str] | None = None) -> None:
    """Records the test prompts, plays policies and rules, writes the section."""
    parser = argparse.ArgumentParser(prog="python -m addiffusion_lab.claims.against_rules", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="training runs of the same process; the first has a table")
    parser.add_argument("--prompts", type=int, default=1024)
    parser.add_argument("--prompt-seed", type=int, default=2026)
    parser.add_argument("--judge", default="emoji_detector")
    parser.add_argument("--lanes", type=int, default=32)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    if options.prompts < 2:
        raise ConfigError(f"--prompts must be at least 2, got {options.prompts}", "use 1024")
    prompts = EmojiPrompts("test").take(options.prompts, seed=options.prompt_seed)
    settings = load_sampler(options.runs[0]).settings()
    attempts = refine_config(settings.refine).limit + 1
    test = record_judged(settings, attempts, prompts, options.judge, options.out / "table", options.lanes)
    page = to_markdown("Policies against rules", learning_sections(options.runs, test))
    print(page)
    print(f"written: {write_text(options.out / 'against_rules.md', page)}")


if __name__ == "__main__":
    main()

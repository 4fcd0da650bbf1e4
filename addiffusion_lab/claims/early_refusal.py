"""Whether refusing attempts by their previews pays: rules with and without them, on a table, at equal NFE."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.evaluation.sections import Section, Table
from addiffusion_env.evaluation.statistics import paired_share_interval
from addiffusion_env.scorers.utility import Utility
from addiffusion_env.tabular.mdp import TabularMDP, Transitions
from addiffusion_env.tabular.rules import RuleOutcomes, play_rule, rules_of, thresholds_of
from addiffusion_env.tabular.table import AttemptTable

BUDGETS = (1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)
"""Most NFE of an image, in the mean over the prompts that a rule is chosen on."""
THRESHOLDS, QUANTILES = 10, (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
"""Number of thresholds of finished images, and quantiles of the utility of previews below which they are refused."""


def refusal_section(
    table: AttemptTable,
    backbone: Backbone,
    process: ProcessConfig,
    utility: Utility,
    halves: tuple[np.ndarray, np.ndarray],
    title: str,
) -> Section:
    """Rules chosen on one half of the prompts by calibrated probability, and judged on the other by the verdicts.

    Args:
        table: with verdicts.
        backbone: provides the schedule.
        process: of the table.
        utility: of its images and previews.
        halves: row numbers.
        title: of the section.
    """
    mdp = TabularMDP(table, Transitions.of(backbone, process), 1.0, 0.0, table.attempts - 1, utility)
    thresholds = thresholds_of(mdp, THRESHOLDS)
    refused = np.quantile(mdp.utilities[:, :, : table.finish], QUANTILES)
    plain = [play_rule(mdp, rule) for rule in rules_of(mdp, thresholds)]
    looking = [*plain, *(play_rule(mdp, rule) for rule in rules_of(mdp, thresholds, refused) if rule.abandon > -np.inf)]
    rows = []
    for budget in BUDGETS:
        without, having = (_crossed(played, halves, budget) for played in (plain, looking))
        if without is None or having is None:
            continue
        gain = paired_share_interval(having[0], without[0])
        rows.append(
            (
                f"{budget:g}",
                *(f"{correct.mean():.3f} at {nfe.mean():.2f}" for correct, nfe, _ in (without, having)),
                f"{gain.estimate:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]",
                f"{having[2].mean():.2f}",
            )
        )
    head = ("budget", "finished images only", "and previews", "gain in share correct", "previews an image")
    return Section(title, (Table(head, tuple(rows)),))


def _crossed(
    played: Sequence[RuleOutcomes], halves: tuple[np.ndarray, np.ndarray], budget: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(P,) verdicts, NFE and previews of the rules that are best on the other half; ``None`` where none is so cheap."""
    found = np.zeros((3, len(played[0].probability)))
    for chosen_on, judged in (halves, halves[::-1]):
        within = [one for one in played if one.outcomes.nfe[chosen_on].mean() <= budget]
        if not within:
            return None
        best = max(within, key=lambda one: one.probability[chosen_on].mean())
        looks = best.outcomes.looks * (best.rule.abandon > -np.inf)  # no other rule reads previews
        found[:, judged] = np.stack([best.outcomes.correct, best.outcomes.nfe, looks])[:, judged]
    return found[0], found[1], found[2]

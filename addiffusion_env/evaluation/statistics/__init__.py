"""Statistics over prompts: paired, with explicit random generators; scipy and statsmodels do the work.

The unit is the prompt (its mean over seeds). Every array is (P,), one entry a prompt, paired by position, except where
pictures and their prompts are given (:func:`cluster_interval`).
"""

from addiffusion_env.evaluation.statistics.correlation import rank_correlation_gap, spearman, spearman_interval
from addiffusion_env.evaluation.statistics.intervals import (
    bootstrap_p,
    cluster_interval,
    mean_interval,
    paired_interval,
    resampled,
    share_interval,
    t_interval,
)
from addiffusion_env.evaluation.statistics.margins import Margin, read_margin
from addiffusion_env.evaluation.statistics.paired import at_most, equivalent, holm, non_inferior, wilcoxon
from addiffusion_env.evaluation.statistics.power import (
    Pilot,
    PowerEstimate,
    pilot_of,
    plan_from,
    prompts_for_correlation,
    prompts_for_difference,
    prompts_for_non_inferiority,
    prompts_for_shares,
    prompts_needed,
    spread_of,
)
from addiffusion_env.evaluation.statistics.results import ROUND, Adjusted, Interval, MarginTest, Significance
from addiffusion_env.evaluation.statistics.shares import paired_share_interval, paired_share_score

__all__ = [
    "ROUND",
    "Adjusted",
    "Interval",
    "Margin",
    "MarginTest",
    "Pilot",
    "PowerEstimate",
    "Significance",
    "at_most",
    "bootstrap_p",
    "cluster_interval",
    "equivalent",
    "holm",
    "mean_interval",
    "non_inferior",
    "paired_interval",
    "paired_share_interval",
    "paired_share_score",
    "pilot_of",
    "plan_from",
    "prompts_for_correlation",
    "prompts_for_difference",
    "prompts_for_non_inferiority",
    "prompts_for_shares",
    "prompts_needed",
    "rank_correlation_gap",
    "read_margin",
    "resampled",
    "share_interval",
    "spearman",
    "spearman_interval",
    "spread_of",
    "t_interval",
    "wilcoxon",
]

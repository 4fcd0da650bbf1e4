"""Statistics over prompts: paired, with explicit random generators; scipy and statsmodels do the work.

The unit is the prompt (its mean over seeds). Every array is (P,), one entry per prompt, paired by position.
"""

from addiffusion_env.evaluation.statistics.correlation import spearman
from addiffusion_env.evaluation.statistics.intervals import (
    bootstrap_p,
    mean_interval,
    paired_interval,
    resampled,
    share_interval,
    t_interval,
)
from addiffusion_env.evaluation.statistics.paired import at_most, holm, non_inferior, wilcoxon
from addiffusion_env.evaluation.statistics.results import (
    ROUND,
    Adjusted,
    Interval,
    Margin,
    MarginTest,
    Significance,
)
from addiffusion_env.evaluation.statistics.shares import paired_share_interval, paired_share_score

__all__ = [
    "ROUND",
    "Adjusted",
    "Interval",
    "Margin",
    "MarginTest",
    "Significance",
    "at_most",
    "bootstrap_p",
    "holm",
    "mean_interval",
    "non_inferior",
    "paired_interval",
    "paired_share_interval",
    "paired_share_score",
    "resampled",
    "share_interval",
    "spearman",
    "t_interval",
    "wilcoxon",
]

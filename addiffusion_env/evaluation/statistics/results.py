"""Results of statistics."""

from __future__ import annotations

from dataclasses import dataclass

from addiffusion_env.evaluation.statistics.arrays import positive_margin

ROUND = 12
"""Decimals to which paired differences are rounded before they are ranked, so that equal ones are tied."""


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        estimate: the sample value.
        low: lower bound.
        high: upper bound.
        level: confidence, in (0, 1).
        n: prompts.
    """

    estimate: float
    low: float
    high: float
    level: float
    n: int

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Significance:
    """Result of a test.

    Attributes:
        statistic: its value.
        p: two-sided p-value.
        n: prompts.
    """

    statistic: float
    p: float
    n: int


@dataclass(frozen=True)
class MarginTest:
    """A test against a margin.

    Attributes:
        difference: mean of first minus second with the (1 - 2 alpha) interval that belongs to the test: Tango's score
            interval where every value is 0 or 1, Student's otherwise.
        margin: in the measure's units; chosen before the data were seen.
        p: of the null hypothesis that the difference lies outside the margin.
        holds: whether p is below alpha, which is the same as the interval lying inside the margin.
    """

    difference: Interval
    margin: float
    p: float
    holds: bool


@dataclass(frozen=True)
class Adjusted:
    """A p-value adjusted within its family.

    Attributes:
        p: the unadjusted value.
        adjusted: Holm's adjusted value; comparable with alpha.
        rejected: whether it is below alpha.
    """

    p: float
    adjusted: float
    rejected: bool


@dataclass(frozen=True)
class Margin:
    """The largest irrelevant deficit, and when it was set: one chosen after seeing the data is not valid evidence.

    Attributes:
        value: in the measure's units, above 0.
        measure: which measure it is for (``"correct"``).
        set_at: when the evaluation's manifest first had it; UTC, ISO 8601.
        records_before: number of records at that time; above 0 it may have been chosen after seeing results.
    """

    value: float
    measure: str
    set_at: str
    records_before: int

    def __post_init__(self) -> None:
        positive_margin(self.value)

    @property
    def before_data(self) -> bool:
        """Whether it was fixed before any image was judged."""
        return self.records_before == 0

    def __str__(self) -> str:
        when = "before any record" if self.before_data else f"after {self.records_before} records"
        return f"{self.value:g} in {self.measure}, in evaluation.json since {self.set_at}, {when}"

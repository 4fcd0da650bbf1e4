"""Claims, their comparisons and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from addiffusion_env.errors import ConfigError, unknown
from addiffusion_env.evaluation.records import Record
from addiffusion_env.evaluation.statistics import Interval
from addiffusion_env.evaluation.tables import MEASURES, measure
from addiffusion_lab.claims.statistics import Margin

Outcome = Literal["supported", "not supported", "inconclusive"]

NO_JUDGE = "none: NFE and constraints"
"""The judge of a claim about spending."""


@dataclass(frozen=True)
class Claims:
    """The samplers that the claims are about, and the criteria of judging, all fixed before the run.

    Attributes:
        policy: name of the policy's sampler in records.
        curve: the same policy at other costs per NFE; with it claims are judged along its whole frontier.
        reference: the full schedule of H1.
        checked: further references of H1, each of which must hold: samplers that check finished images and resample,
            other solvers. A policy that resamples must not be compared with single attempts only.
        nfe_limit: maximum mean NFE of the policy in H1: 30 of 50 steps; 7 on the emoji world.
        kinds: kinds of sampler that H2 compares the policy with (the part before the colon). Constant stops count
            as ``fixed``, and a sampler under the guidance interval as what it wraps. All must be present.
        shuffled: H3's control: the policy run on other prompts' features; ``None`` when it was not run.
        no_refine: H4's comparator: the policy without refinement, at one or more costs per NFE.
        refine_controls: further comparators of H4, name -> samplers: ``{"random mask": ("policy:masked@0.01",)}``.
        least_prompts: minimum number of prompts for a decision.
        least_correlation: smallest relevant rank correlation (H3).
        alpha: significance level of each family: one-sided for H1, two-sided for the others.
        resamples: number of resamples of prompts, and of permutations.
        seed: seed of both.
    """

    policy: str
    curve: tuple[str, ...] = ()
    reference: str = "fixed:50"
    checked: tuple[str, ...] = ()
    nfe_limit: float = 30.0
    kinds: tuple[str, ...] = ("fixed", "prompt_rule", "best_of", "threshold_resample")
    shuffled: str | None = None
    no_refine: tuple[str, ...] = ()
    refine_controls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    least_prompts: int = 20
    least_correlation: float = 0.1
    alpha: float = 0.05
    resamples: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise ConfigError(f"alpha must lie in (0, .5), got {self.alpha}", "use 0.05")
        if not self.nfe_limit > 0:
            raise ConfigError(f"nfe_limit must be above 0, got {self.nfe_limit}", "use 30, or 7 on the emoji world")
        if self.resamples < 99:
            raise ConfigError(f"resamples must be at least 99, got {self.resamples}", "use 5000")
        if self.least_prompts < 2:
            raise ConfigError(f"least_prompts must be at least 2, got {self.least_prompts}", "use 20")

    @property
    def points(self) -> tuple[str, ...]:
        """The policy at all its costs per NFE, without duplicates."""
        return tuple(dict.fromkeys((self.policy, *self.curve)))


@dataclass(frozen=True, eq=False)
class Case:
    """Inputs of one verdict.

    Attributes:
        table: the records.
        claims: see :class:`Claims`.
        judge: the measure that decides.
        margin: for that measure, or ``None`` when none was set.
        rng: draws resamples and permutations.
    """

    table: ImageTable
    claims: Claims
    judge: str
    margin: Margin | None
    rng: np.random.Generator

    @property
    def relevant(self) -> float:
        """The smallest difference that matters: the margin, or 0 when none was set."""
        return self.margin.value if self.margin is not None else 0.0


@dataclass(frozen=True)
class Comparison:
    """One test of a verdict's family.

    Attributes:
        comparator: what the policy was compared with, and at which cost.
        effect: the policy minus it, with its interval.
        p: unadjusted p-value.
        holm: p-value adjusted over the family.
        cost: mean cost of the comparison; NaN where there is none.
        reached: whether the comparator was run at that cost or above; if not, no claim is possible.
        below: whether it was run at higher costs only; if so, nothing is ruled out at equal cost.
        most: the largest effect that is not ruled out over the whole family; NaN where that is not asked.
        spread: standard deviation of the effect over prompts; NaN where that is not asked.
    """

    comparator: str
    effect: Interval
    p: float
    holm: float
    cost: float = float("nan")
    reached: bool = True
    below: bool = False
    most: float = float("nan")
    spread: float = float("nan")


@dataclass(frozen=True)
class Verdict:
    """Verdict of the records on a claim.

    Attributes:
        hypothesis: its registry name.
        claim: the claim in one sentence.
        verdict: ``supported``: shown. ``not supported``: an effect that matters is ruled out, at a level that holds
            for all comparisons of the family together. ``inconclusive``: neither, which is no evidence either way.
        effect: of the comparison that decides (the weakest of the family), with its interval; ``None`` without data.
        p: of the whole claim, Holm-adjusted within its family; 1 where an effect is on the other side; NaN without
            data.
        n: prompts.
        comparator: of the comparison that decides.
        judge: the measure, or :data:`NO_JUDGE`.
        margin: with its provenance, where the claim has one.
        reason: one sentence.
        comparisons: the whole family.
        prompts_needed: number of prompts with which an inconclusive claim would be supported with power .8 under
            ``provided``; ``None`` where that cannot be computed.
        provided: the truth that this number is for, in words.
        independent: whether the judge was neither optimised nor selected by; others are only shown.
        decides: whether this is the deciding verdict: that of the first independent judge.
    """

    hypothesis: str
    claim: str
    verdict: Outcome
    effect: Interval | None
    p: float
    n: int
    comparator: str
    judge: str
    margin: Margin | None
    reason: str
    comparisons: tuple[Comparison, ...] = ()
    prompts_needed: int | None = None
    provided: str = ""
    independent: bool = True
    decides: bool = True


def claim_p(comparisons: Sequence[Comparison]) -> float:
    """The largest adjusted p of a family whose effects must all be above 0: one below 0 is no evidence."""
    return max(row.holm if row.effect.estimate > 0 else 1.0 for row in comparisons)


def unanswered(name: str, claim: str, case: Case, comparator: str, reason: str, n: int = 0) -> Verdict:
    """The verdict when data are missing."""
    return Verdict(name, claim, "inconclusive", None, float("nan"), n, comparator, case.judge, case.margin, reason)


def missing(case: Case, names: Mapping[str, str] | tuple[str, ...]) -> str:
    """A text naming the first of some samplers without records; empty when all have records."""
    gone = [name for name in names if name not in case.table.samplers]
    return f"there are no records of {gone[0]}" if gone else ""


def too_few(n: int, case: Case) -> str:
    """Why ``n`` prompts are too few to decide; empty when they are enough."""
    least = case.claims.least_prompts
    whose = "" if case.judge == NO_JUDGE else f" judged by {case.judge}"
    return f"{n} prompts{whose} in common, fewer than the {least} that decide" if n < least else ""


@dataclass(frozen=True, eq=False)
class Means:
    """Values of some samplers on their common images.

    Attributes:
        prompts: (P,) index of each prompt into the table's.
        values: measure -> (samplers, P) means over the shared seeds of each prompt.
    """

    prompts: np.ndarray
    values: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True, eq=False)
class ImageTable:
    """The records of an evaluation.

    Attributes:
        samplers: M names.
        prompt_ids: P ids.
        constraints: (P,) number of constraints of each prompt.
        prompt: (N,) index of each image's prompt.
        columns: measure -> (M, N), NaN where a sampler has no such image or the value is unknown.
    """

    samplers: tuple[str, ...]
    prompt_ids: tuple[str, ...]
    constraints: np.ndarray
    prompt: np.ndarray
    columns: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, records: Sequence[Record], measures: Sequence[str]) -> ImageTable:
        """Joins records by prompt and seed.

        Args:
            records: records of all samplers; of duplicate images the last record is used.
            measures: names of measures or held-out scorers; values of missing scorers are unknown.

        Raises:
            ConfigError: without records.
            UnknownNameError: for a measure that no record has.
        """
        if not records:
            raise ConfigError("there are no records to judge claims by", "evaluate first: python eval_sb3.py")
        known = {*MEASURES, *(name for record in records for name in record.extra)}
        for name in measures:
            if name not in known:
                raise unknown("measure", name, known)
        samplers = tuple(dict.fromkeys(record.sampler for record in records))
        images = {key: n for n, key in enumerate(sorted({(r.prompt_id, r.seed) for r in records}))}
        asked = {record.prompt_id: record.constraints for record in records}
        prompt_ids = tuple(sorted(asked))
        place = {prompt_id: n for n, prompt_id in enumerate(prompt_ids)}
        row = {name: n for n, name in enumerate(samplers)}
        columns = {name: np.full((len(samplers), len(images)), np.nan) for name in measures}
        for record in records:
            at = row[record.sampler], images[record.prompt_id, record.seed]
            for name, column in columns.items():
                if name in MEASURES or name in record.extra:
                    column[at] = measure(record, name)
        return cls(
            samplers=samplers,
            prompt_ids=prompt_ids,
            constraints=np.array([asked[prompt_id] for prompt_id in prompt_ids], dtype=np.float64),
            prompt=np.array([place[prompt_id] for prompt_id, _ in images], dtype=np.intp),
            columns=columns,
        )

    def means(self, samplers: Sequence[str], measures: Sequence[str]) -> Means:
        """Means per prompt over the images for which every sampler has every measure.

        Raises:
            UnknownNameError: for a sampler without records.
        """
        for name in samplers:
            if name not in self.samplers:
                raise unknown("sampler", name, self.samplers)
        rows = [self.samplers.index(name) for name in samplers]
        chosen = {name: self.columns[name][rows] for name in measures}
        shared = np.logical_and.reduce([np.isfinite(column).all(0) for column in chosen.values()])
        prompts, index = np.unique(self.prompt[shared], return_inverse=True)
        sizes = np.bincount(index, minlength=len(prompts))

        def averaged(column: np.ndarray) -> np.ndarray:
            sums = [np.bincount(index, weights=one, minlength=len(prompts)) for one in column[:, shared]]
            return np.array(sums).reshape(len(rows), len(prompts)) / np.maximum(sizes, 1)

        return Means(prompts, {name: averaged(column) for name, column in chosen.items()})

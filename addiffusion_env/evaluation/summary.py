"""The numbers of a report, computed from records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from addiffusion_env.evaluation.collapse import Behaviour, behaviour, regret_in
from addiffusion_env.evaluation.frontier import FrontierGain, gain_over
from addiffusion_env.evaluation.manifest import Manifest
from addiffusion_env.evaluation.records import Record, by_sampler
from addiffusion_env.evaluation.statistics import (
    Adjusted,
    Interval,
    MarginTest,
    Significance,
    differences,
    holm,
    mean_interval,
    non_inferior,
    paired_share_interval,
    share_interval,
    spearman,
    wilcoxon,
)
from addiffusion_env.evaluation.tables import column, focus_of, paired
from addiffusion_env.prompts import stable_hash
from addiffusion_env.samplers.traits import Traits
from addiffusion_env.tabular.outcomes import Regret

LEVEL = 0.95


@dataclass(frozen=True)
class SamplerRow:
    """One sampler's row in the table.

    Attributes:
        sampler: its name.
        traits: its properties.
        images: number of images.
        prompts: number of prompts.
        nfe, network_calls, preference, clip_score, seconds: means over prompts with 95 % intervals.
        correct: share of correct images; ``None`` without verdicts.
        extra: further held-out scorers.
        stop_share: share of images that were stopped early.
        refine_share: share of images that were refined.
        peak_memory: peak memory in bytes; ``None`` where not measured.
    """

    sampler: str
    traits: Traits
    images: int
    prompts: int
    nfe: Interval
    network_calls: Interval
    preference: Interval
    clip_score: Interval
    seconds: Interval
    correct: Interval | None
    extra: Mapping[str, Interval]
    stop_share: float
    refine_share: float
    peak_memory: int | None = None


@dataclass(frozen=True)
class TaskRow:
    """One sampler on one kind of prompt.

    Attributes:
        task: the kind.
        sampler: the sampler's name.
        images: number of images.
        nfe: mean.
        correct: share, or ``None``.
        preference: mean, standard deviations.
    """

    task: str
    sampler: str
    images: int
    nfe: float
    correct: float | None
    preference: float


@dataclass(frozen=True)
class PairRow:
    """The focus sampler minus another, prompt by prompt.

    Attributes:
        sampler: the other.
        quality: difference in the primary measure.
        preference: difference in preference, standard deviations.
        nfe: difference in NFE.
        seconds: difference in seconds.
        test: Wilcoxon's test of the primary measure.
        holm: its p-value within the family of all these rows.
    """

    sampler: str
    quality: Interval
    preference: Interval
    nfe: Interval
    seconds: Interval
    test: Significance
    holm: Adjusted


@dataclass(frozen=True)
class Summary:
    """All results of a report.

    Attributes:
        primary: the measure that decides: ``correct``, or ``preference`` without verdicts.
        focus: the sampler that the others are compared with.
        reference: the sampler of the longest fixed schedule, or ``None``.
        samplers: one row per sampler.
        tasks: one row per task and sampler.
        pairs: the focus sampler against each other one.
        frontier: the focus sampler over the fixed-step frontier at equal NFE, or ``None``.
        frontier_seconds: the same at equal seconds.
        non_inferiority: of the focus sampler to the reference, or ``None``.
        difficulty: rank correlation of the focus sampler's NFE with the prompts' constraints; ``None`` where either
            is constant.
        behaviours: name -> variation over prompts, for every sampler that is not constant.
        regret: of the focus sampler, or ``None``.
    """

    primary: str
    focus: str
    reference: str | None
    samplers: tuple[SamplerRow, ...]
    tasks: tuple[TaskRow, ...]
    pairs: tuple[PairRow, ...]
    frontier: FrontierGain | None
    frontier_seconds: FrontierGain | None
    non_inferiority: MarginTest | None
    difficulty: Significance | None
    behaviours: Mapping[str, Behaviour]
    regret: Regret | None


def summarise(records: Sequence[Record], manifest: Manifest) -> Summary:
    """Computes a report's numbers; the same records give the same numbers."""
    groups = by_sampler(records)
    primary = "correct" if all(any(r.correct is not None for r in group) for group in groups.values()) else "preference"
    known = manifest.traits
    traits = {name: known[name] for name in groups}
    focus = focus_of(traits)
    reference = reference_of(traits)
    constants = {name: group for name, group in groups.items() if traits[name].constant and name != focus}
    chosen = groups[focus]
    margin = manifest.margins[-1].margin
    return Summary(
        primary=primary,
        focus=focus,
        reference=reference,
        samplers=tuple(sampler_row(name, traits[name], group) for name, group in groups.items()),
        tasks=task_rows(groups),
        pairs=pair_rows(focus, groups, primary),
        frontier=gain_over(chosen, constants, primary, generator("frontier", focus)),
        frontier_seconds=gain_over(chosen, constants, primary, generator("frontier", focus), cost="seconds"),
        non_inferiority=_non_inferiority(chosen, groups, reference, focus, primary, margin),
        difficulty=_difficulty(chosen),
        behaviours={name: behaviour(group) for name, group in groups.items() if not traits[name].constant},
        regret=regret_in(chosen, constants, manifest.cost_per_nfe),
    )


def generator(*key: str) -> np.random.Generator:
    """The random generator of one interval, keyed so that results are independent of each other."""
    return np.random.default_rng(stable_hash("report", *key))


def reference_of(traits: Mapping[str, Traits]) -> str | None:
    """The fixed schedule with the most steps."""
    return max(
        (name for name, own in traits.items() if own.schedule_steps),
        key=lambda name: traits[name].schedule_steps or 0,
        default=None,
    )


def sampler_row(name: str, traits: Traits, records: Sequence[Record]) -> SamplerRow:
    """One sampler's numbers."""

    def mean(of: str) -> Interval:
        return mean_interval(column(records, of), generator(name, of), LEVEL)

    verdicts = column(records, "correct")
    return SamplerRow(
        sampler=name,
        traits=traits,
        images=len(records),
        prompts=len({record.prompt_id for record in records}),
        nfe=mean("nfe"),
        network_calls=mean("network_calls"),
        preference=mean("preference"),
        clip_score=mean("clip_score"),
        seconds=mean("seconds"),
        correct=share_interval(verdicts, LEVEL) if len(verdicts) else None,
        extra={scorer: mean(scorer) for scorer in records[0].extra},
        stop_share=float(np.mean([1 in record.actions for record in records])),
        refine_share=float(np.mean([record.refinements > 0 for record in records])),
        peak_memory=max((r.peak_memory for r in records if r.peak_memory is not None), default=None),
    )


def task_rows(groups: Mapping[str, Sequence[Record]]) -> tuple[TaskRow, ...]:
    """Every sampler on every kind of prompt."""
    tasks = sorted({record.task for group in groups.values() for record in group})
    rows = []
    for task in tasks:
        for name, group in groups.items():
            own = [record for record in group if record.task == task]
            if own:
                verdicts = column(own, "correct")
                nfe, liked = (float(column(own, of).mean()) for of in ("nfe", "preference"))
                rows.append(
                    TaskRow(task, name, len(own), nfe, float(verdicts.mean()) if len(verdicts) else None, liked)
                )
    return tuple(rows)


def pair_rows(focus: str, groups: Mapping[str, Sequence[Record]], primary: str) -> tuple[PairRow, ...]:
    """The focus sampler against every other one, as one family of tests."""
    others = [name for name in groups if name != focus and len(paired(groups[focus], groups[name], primary)[0])]
    tests = {name: wilcoxon(*paired(groups[focus], groups[name], primary)) for name in others}
    adjusted = holm({name: test.p for name, test in tests.items()})

    def difference(name: str, of: str) -> Interval:
        both = paired(groups[focus], groups[name], of)
        if of == "correct":
            return paired_share_interval(*both, LEVEL)
        return mean_interval(differences(*both), generator(focus, name, of), LEVEL)

    return tuple(
        PairRow(
            sampler=name,
            quality=difference(name, primary),
            preference=difference(name, "preference"),
            nfe=difference(name, "nfe"),
            seconds=difference(name, "seconds"),
            test=tests[name],
            holm=adjusted[name],
        )
        for name in others
    )


def _non_inferiority(
    chosen: Sequence[Record],
    groups: Mapping[str, Sequence[Record]],
    reference: str | None,
    focus: str,
    primary: str,
    margin: float,
) -> MarginTest | None:
    if reference is None or reference == focus:
        return None
    first, second = paired(chosen, groups[reference], primary)
    return non_inferior(first, second, margin) if len(first) > 1 else None


def _difficulty(records: Sequence[Record]) -> Significance | None:
    constraints = {record.prompt_id: record.constraints for record in records}
    keys = sorted(constraints)
    asked, spent = np.array([constraints[key] for key in keys]), column(records, "nfe")
    return spearman(asked, spent, generator("difficulty")) if np.ptp(asked) and np.ptp(spent) else None

"""The decision tree of a sampler as a figure: which actions follow which, and for what share of the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from addiffusion_env.engine.process import Action
from addiffusion_env.evaluation.records import Record

LABELLED = 0.04
"""Smallest share of the images that a label fits into."""
TEXT = 0.27
"""Width of the text beside an end, as a share of that of all decisions."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue."""
MOST_NAMED, MOST_LABELLED = 8, 16
"""Most decisions at which the action and its share fit into the width of one, and at which the share alone does."""


@dataclass(frozen=True)
class Branch:
    """The images whose first actions are the same.

    Attributes:
        actions: these actions; the last one is drawn.
        low: share of the images in the branches below it, so that all branches of a decision are stacked.
        share: of all images.
        ended: share of all images whose episode ended with this action.
        nfe: mean NFE of those; NaN where none ended.
        correct: share correct of those; ``None`` without verdicts.
    """

    actions: tuple[int, ...]
    low: float
    share: float
    ended: float
    nfe: float
    correct: float | None


def branches(records: Sequence[Record]) -> Iterator[Branch]:
    """Every branch of the records of one sampler, each before its continuations."""
    yield from _grown(sorted(records, key=lambda record: record.actions), 0, 0.0, len(records))


def _grown(records: Sequence[Record], depth: int, low: float, total: int) -> Iterator[Branch]:
    """The branches of records, ordered by their actions, that agree in the first ``depth`` of them."""
    for actions, group in groupby(
        (record for record in records if len(record.actions) > depth), key=lambda record: record.actions[: depth + 1]
    ):
        inside = list(group)
        ends = [record for record in inside if len(record.actions) == depth + 1]
        verdicts = [record.correct for record in ends if record.correct is not None]
        yield Branch(
            actions,
            low,
            len(inside) / total,
            len(ends) / total,
            float(np.mean([record.nfe for record in ends])) if ends else float("nan"),
            float(np.mean(verdicts)) if verdicts else None,
        )
        # Sorted, the episodes that end here come first; their continuations are stacked above them.
        yield from _grown(inside[len(ends) :], depth + 1, low + len(ends) / total, total)
        low += len(inside) / total


def decision_tree(pyplot: Any, records: Sequence[Record], colours: dict[int, Any], width: float, small: float) -> Any:
    """One column per decision, one box per branch: its height is the share of the images, its colour the action.

    Beside an action that ends episodes stand their mean NFE and the share of correct images.

    Args:
        pyplot: matplotlib's.
        records: of one sampler.
        colours: action -> colour.
        width: of the figure in inches.
        small: font size in points.
    """
    found = list(branches(records))
    longest = max(len(branch.actions) for branch in found)
    labelled = LABELLED if longest <= MOST_LABELLED else np.inf
    figure, axes = pyplot.subplots(figsize=(width, 4.6))
    right = longest + 0.6
    for branch in found:
        action, left = branch.actions[-1], len(branch.actions) - 0.5
        axes.bar(
            left, branch.share, 1.0, branch.low, align="edge", color=colours[action], edgecolor="white", linewidth=0.8
        )
        if branch.share >= labelled:
            name = f"{Action(action).name.lower()} " if longest <= MOST_NAMED else ""
            ink = "black" if np.dot(colours[action][:3], LUMINANCE) > 0.6 else "white"
            at = branch.low + branch.share / 2
            axes.text(left + 0.05, at, f"{name}{branch.share:.0%}", color=ink, fontsize=small, va="center")
        if branch.ended >= labelled:
            verdict = "" if branch.correct is None else f", {branch.correct:.0%} correct"
            at = branch.low + branch.ended / 2
            axes.text(left + 1.05, at, f"{branch.nfe:.1f} NFE{verdict}", fontsize=small, va="center")
            right = max(right, left + 1.1 + TEXT * longest)
    axes.set_xlim(0.5, right)
    axes.set_ylim(0, 1)
    axes.set_xticks(range(1, longest + 1))
    axes.set_xlabel("decision")
    axes.set_ylabel("share of images")
    legend_above(pyplot, figure, {Action(action).name.lower(): colour for action, colour in colours.items()}, small)
    return figure


def legend_above(pyplot: Any, figure: Any, colours: Mapping[str, Any], small: float) -> None:
    """A legend of coloured boxes above the axes; ``small`` is its font size in points."""
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    figure.legend(
        handles, colours, fontsize=small, frameon=False, loc="outside upper center", ncols=min(4, len(colours))
    )

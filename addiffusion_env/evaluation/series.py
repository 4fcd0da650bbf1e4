"""Samplers of a figure in series: one style and one entry of the legend each, with texts beside their points.

A study has twenty samplers, too many to be told apart by colour and marker. Samplers that differ in their numbers only
share these, and their numbers stand beside their points.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle, product
from typing import Any

import numpy as np

from addiffusion_env.evaluation.summary import SamplerRow, Summary
from addiffusion_env.samplers.traits import Traits

BLUE, RED, GREY = "#3b78c4", "#c8413b", "#5f6368"
PALETTE = ("#2e8b57", "#8e5bb5", "#d9822b", "#0f8b8d", "#d6589f", "#7a6a53", "#5c6bc0", "#9aa11f", BLUE)
MARKERS = "so^vPX*"
FIXED = "fixed steps (95 % band)"
"""Label of the fixed schedules where there are several."""
RADIUS = 4.0
"""Points around a marker that no text covers."""
DISTANCES = (1.0, 8.0, 16.0, 26.0)
"""Points between a marker and its text, the nearest first."""
AROUND = ((0, -1), (1, 0), (-1, 0), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
"""Sides of a marker for its text, the preferred first: right and up are 1."""
BEHIND = tuple((1, rows) for rows in range(9))
"""Places behind the end of a line. Written from the lowest line up, texts have the order of their lines."""


@dataclass(frozen=True)
class Series:
    """Samplers that differ in their numbers only.

    Attributes:
        name: its sampler's name; with several samplers their common part, with an ellipsis for the numbers.
        colour: of its points and lines.
        marker: of its points.
        rows: sampler -> what is written beside its point; empty for the only sampler.
        joined: whether its points are those of one curve.
    """

    name: str
    colour: str
    marker: str
    rows: dict[str, str] = field(default_factory=dict)
    joined: bool = False


def series_of(summary: Summary) -> list[Series]:
    """Every sampler of a summary in its series: the fixed schedules first, in grey; the focus sampler's is red."""
    members: dict[tuple[str, bool], dict[str, str]] = {}
    for row in summary.samplers:
        name, numbers = _split(row.sampler, row.traits)
        members.setdefault((name, bool(row.traits.curve)), {})[row.sampler] = numbers
    grey = {row.sampler for row in summary.samplers if plain_fixed(row)}
    found: list[Series] = []
    looks = zip(cycle(PALETTE), cycle(MARKERS), strict=True)
    for (name, joined), rows in sorted(members.items(), key=lambda item: not grey >= set(item[1])):
        if grey >= set(rows):
            name, colour, marker = FIXED, GREY, "o"
        elif summary.focus in rows:
            colour, marker = RED, "d"
        else:
            colour, marker = next(looks)
        if len(rows) == 1:
            name, rows = next(iter(rows)), dict.fromkeys(rows, "")
        found.append(Series(name, colour, marker, rows, joined and len(rows) > 1))
    return found


def _split(name: str, traits: Traits) -> tuple[str, str]:
    """A sampler's name with an ellipsis in place of its numbers, and these.

    >>> _split("best_of:3x4", Traits())
    ('best_of:…', '3x4')
    >>> _split("policy:emoji@0.238089,shuffled", Traits(control_of="policy:emoji@0.238089", controls=("shuffled",)))
    ('policy:emoji@…,shuffled', '0.238')
    """
    whole = traits.control_of or name
    stem = traits.curve or (whole.rpartition("@")[0] if traits.control_of else whole.partition(":")[0])
    mark, numbers = whole[len(stem) : len(stem) + 1], whole[len(stem) + 1 :]
    if not mark:
        return name, ""
    with suppress(ValueError):  # several numbers are left as they are
        numbers = numbers if numbers.isdigit() else f"{float(numbers):.3g}"
    return f"{stem}{mark}…{name.removeprefix(whole)}", numbers


def plain_fixed(row: SamplerRow) -> bool:
    """Whether it is a point of the line of fixed schedules."""
    return row.traits.schedule_steps is not None and bool(row.traits.curve)


@dataclass(frozen=True)
class Label:
    """A text beside a point.

    Attributes:
        x, y: the point, in the units of the axes.
        text: may be empty: then only the point is kept free of other texts.
        colour: of the text.
        bars: lower and upper end of each of the point's error bars, which no text covers either.
    """

    x: float
    y: float
    text: str
    colour: str
    bars: tuple[tuple[tuple[float, float], tuple[float, float]], ...] = ()


def write_labels(
    figure: Any, axes: Any, labels: Sequence[Label], size: float, sides: Sequence[tuple[int, int]] = AROUND
) -> None:
    """Writes each text where it covers no point and no other text, as near as that allows; the last step of a figure.

    Args:
        figure: matplotlib's, complete but for these texts: its layout is computed.
        axes: of the figure.
        labels: points and their texts.
        size: of the font in points.
        sides: places around a point, the preferred first.
    """
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()  # distances in points need the layout
    unit, renderer = figure.dpi / 72, figure.canvas.get_renderer()
    low, high = (np.array(corner) / unit for corner in axes.get_window_extent(renderer).get_points())
    marks = axes.transData.transform([(label.x, label.y) for label in labels]) / unit
    taken = [(mark - RADIUS, mark + RADIUS) for mark in marks]
    for label in labels:
        for bar in label.bars:
            ends = axes.transData.transform(bar) / unit
            taken.append((ends[0] - 1, ends[1] + 1))
    for label, mark in zip(labels, marks, strict=True):
        if not label.text:
            continue
        at, beside = (label.x, label.y), {"textcoords": "offset points", "ha": "center", "va": "center"}
        note = axes.annotate(label.text, at, (0, 0), **beside, color=label.colour, fontsize=size)
        note.set(in_layout=False, path_effects=[withStroke(linewidth=2, foreground="white")])
        box = note.get_window_extent(renderer)
        half = np.array([box.width, box.height]) / unit / 2
        offsets = [np.array(side) * (half + RADIUS + distance) for distance, side in product(DISTANCES, sides)]
        costs = []
        for middle in mark + np.array(offsets):
            outside = np.maximum(low - middle + half, 0).sum() + np.maximum(middle + half - high, 0).sum()
            costs.append(sum(_shared(middle - half, middle + half, *other) for other in taken) + 100 * outside)
        best = int(np.argmin(costs))
        note.set_position(offsets[best])
        if (np.abs(offsets[best]) - half).max() > RADIUS + DISTANCES[0] + 1:  # not beside its marker
            line = {"arrowstyle": "-", "color": label.colour, "linewidth": 0.5, "shrinkA": size / 2, "shrinkB": RADIUS}
            axes.annotate("", at, offsets[best], **beside, arrowprops=line).set_in_layout(False)
        taken.append((mark + offsets[best] - half, mark + offsets[best] + half))


def _shared(low: np.ndarray, high: np.ndarray, other_low: np.ndarray, other_high: np.ndarray) -> float:
    """The area that two boxes share."""
    return float(np.maximum(np.minimum(high, other_high) - np.maximum(low, other_low), 0).prod())

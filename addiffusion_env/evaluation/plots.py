"""The figures of a report, from records and their summary; matplotlib, without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from addiffusion_env.agents.figures import timelines
from addiffusion_env.errors import MissingPackageError
from addiffusion_env.evaluation.films import Film, draw_film
from addiffusion_env.evaluation.records import Record, by_method
from addiffusion_env.evaluation.runner import png_bytes
from addiffusion_env.evaluation.statistics import Interval
from addiffusion_env.evaluation.summary import MethodRow, Summary

BLUE, RED, GREY, GRID = "#3b78c4", "#c8413b", "#5f6368", "#e3e5e8"
PALETTE = ("#2e8b57", "#8e5bb5", "#d9822b", "#0f8b8d", "#b5485d", "#7a6a53", "#5c6bc0", "#9aa11f")
LABELS = {
    "correct": "share correct (detector)",
    "preference": "preference (standard deviations)",
    "nfe": "mean NFE (guided evaluations a picture)",
    "seconds": "mean seconds a picture",
}
TIMELINE_ROWS = 64
MARKERS = "so^vPX*"
LINES = ("-", "--", ":", "-.")
WIDE = 6.0
"""Costs that lie further apart than by this factor are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Style:
    """How a method is drawn, the same in every figure.

    Attributes:
        colour: of its points and lines.
        marker: of its points.
        line: between them.
    """

    colour: str
    marker: str
    line: str


def styles(summary: Summary) -> dict[str, Style]:
    """Method -> style: the focus method and its prices red diamonds, no two others alike up to 56 of them."""
    curve = [row.method for row in _curve(summary.methods, summary.focus, "nfe")]
    found = {summary.focus: Style(RED, "D", "-")}
    for place, name in enumerate(name for name in curve if name != summary.focus):
        found[name] = Style(RED, "d", LINES[1 + place % (len(LINES) - 1)])
    others = [row.method for row in summary.methods if row.method not in found and not _plain_fixed(row.method)]
    for place, name in enumerate(others):
        line = LINES[place // len(PALETTE) % len(LINES)]
        found[name] = Style(PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)], line)
    return found


def figures(records: Sequence[Record], summary: Summary, films: Sequence[Film]) -> dict[str, bytes]:
    """Every figure of a report: file stem -> PNG file.

    Raises:
        MissingPackageError: without matplotlib.
    """
    pyplot = _pyplot()
    focus = by_method(records)[summary.focus]
    found = {"frontier": frontier(pyplot, summary, summary.primary, "nfe")}
    if summary.primary != "preference":
        found["frontier_preference"] = frontier(pyplot, summary, "preference", "nfe")
    found["frontier_seconds"] = frontier(pyplot, summary, summary.primary, "seconds")
    found["nfe_by_task"] = nfe_by_task(pyplot, focus, summary.focus)
    found["nfe_by_demands"] = nfe_by_demands(pyplot, by_method(records), summary)
    shown = sorted(focus, key=lambda record: (record.task, record.nfe, record.uid))[:TIMELINE_ROWS]
    found["timelines"] = png_bytes(timelines([record.actions for record in shown]))
    paid = [film for film in films if film.method == summary.focus and film.terms]
    if paid:
        found["reward_terms"] = reward_terms(pyplot, paid)
    found.update({f"film_{number:02d}": png_bytes(draw_film(film)) for number, film in enumerate(films)})
    return found


def frontier(pyplot: Any, summary: Summary, quality: str, cost: str) -> bytes:
    """Quality against cost with 95 % intervals both ways; fixed schedules are joined, and so are a policy's prices."""
    figure, axes = pyplot.subplots(figsize=(9.2, 4.6))
    rows = [row for row in summary.methods if _interval(row, quality) is not None]
    fixed = sorted((row for row in rows if _plain_fixed(row.method)), key=lambda row: _interval(row, cost).estimate)  # type: ignore[union-attr]
    if fixed:
        x = [_interval(row, cost).estimate for row in fixed]  # type: ignore[union-attr]
        bands: list[Any] = [_interval(row, quality) for row in fixed]
        axes.fill_between(x, [b.low for b in bands], [b.high for b in bands], color=GREY, alpha=0.15, linewidth=0)
        axes.plot(x, [b.estimate for b in bands], "-o", color=GREY, markersize=4, label="fixed steps (95 % band)")
        for row, at, band in zip(fixed, x, bands, strict=True):
            axes.annotate(
                row.method.split(":")[1], (at, band.estimate), (0, -13), textcoords="offset points", color=GREY
            )
    others = [row for row in rows if not _plain_fixed(row.method)]
    curve = _curve(others, summary.focus, cost)
    line: list[Any] = [(_interval(row, cost), _interval(row, quality)) for row in curve]
    axes.plot([x.estimate for x, _ in line], [y.estimate for _, y in line], "-", color=RED, linewidth=1)
    drawn = styles(summary)
    for row in [*curve, *(row for row in others if row not in curve)]:
        _point(axes, row, quality, cost, drawn[row.method])
    _spread_costs(axes, [_interval(row, cost).estimate for row in rows])  # type: ignore[union-attr]
    axes.set_xlabel(LABELS[cost])
    axes.set_ylabel(LABELS[quality])
    axes.grid(color=GRID)
    _legend_beside(axes)
    return _png(pyplot, figure)


def _curve(rows: Sequence[MethodRow], focus: str, cost: str) -> list[MethodRow]:
    """The focus method at all its prices, controls left out, from the cheapest."""
    stem = focus.rpartition("@")[0]
    same = [
        row
        for row in rows
        if row.method == focus
        or (stem and row.method.rpartition("@")[0] == stem and "," not in row.method[len(stem) :])
    ]
    return sorted(same, key=lambda row: _interval(row, cost).estimate)  # type: ignore[union-attr]


def _spread_costs(axes: Any, spent: Sequence[float]) -> None:
    """A logarithmic axis where costs lie so far apart that most of them would share a corner."""
    from matplotlib import ticker

    if min(spent, default=0.0) > 0 and max(spent) > WIDE * min(spent):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def _legend_beside(axes: Any) -> None:
    """The legend right of the axes, where it covers no data."""
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _point(axes: Any, row: MethodRow, quality: str, cost: str, style: Style) -> None:
    across, up = _interval(row, cost), _interval(row, quality)
    assert across is not None and up is not None
    axes.errorbar(
        across.estimate,
        up.estimate,
        xerr=[[across.estimate - across.low], [across.high - across.estimate]],
        yerr=[[up.estimate - up.low], [up.high - up.estimate]],
        fmt=style.marker,
        color=style.colour,
        markersize=7 if style.marker == "D" else 5,
        elinewidth=1,
        capsize=2,
        label=row.method,
    )


def _plain_fixed(method: str) -> bool:
    return method.startswith("fixed:") and "," not in method


def _interval(row: MethodRow, name: str) -> Interval | None:
    return getattr(row, name)


def nfe_by_task(pyplot: Any, records: Sequence[Record], title: str) -> bytes:
    """Histograms of NFE, one for each kind of prompt, on one axis."""
    tasks = sorted({record.task for record in records})
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(2.4 * columns + 0.6, 1.9 * rows + 0.5), sharex=True, sharey=True, squeeze=False
    )
    spent = [record.nfe for record in records]
    edges = np.arange(np.floor(min(spent)) - 0.5, np.ceil(max(spent)) + 1.5)
    for axes, task in zip(grid.flat, tasks, strict=False):
        own = [record.nfe for record in records if record.task == task]
        axes.hist(own, bins=edges, weights=np.full(len(own), 1 / len(own)), color=BLUE)
        axes.axvline(float(np.mean(own)), color=RED, linewidth=1.2)
        axes.set_title(f"{task} (n={len(own)}, mean {np.mean(own):.1f})", fontsize=8)
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in list(grid.flat)[len(tasks) :]:
        axes.set_visible(False)
    figure.supxlabel(f"NFE of {title}", fontsize=9)
    figure.supylabel("share of pictures", fontsize=9)
    return _png(pyplot, figure)


def nfe_by_demands(pyplot: Any, groups: Mapping[str, Sequence[Record]], summary: Summary) -> bytes:
    """Mean NFE against how many things the prompt asks for, for every method that spends more on some."""
    figure, axes = pyplot.subplots(figsize=(7.4, 3.4))
    names = [name for name, made in groups.items() if len({record.nfe for record in made}) > 1] or [summary.focus]
    drawn = styles(summary)
    for name in names:
        demands = sorted({record.demands for record in groups[name]})
        spent = [[record.nfe for record in groups[name] if record.demands == value] for value in demands]
        error = [1.96 * float(np.std(values)) / np.sqrt(len(values)) for values in spent]
        style = drawn.get(name, Style(GREY, "o", "-"))
        axes.errorbar(
            demands,
            [float(np.mean(v)) for v in spent],
            yerr=error,
            fmt=style.marker + style.line,
            color=style.colour,
            linewidth=2 if name == summary.focus else 1,
            markersize=4,
            label=name,
        )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("demands of the prompt")
    axes.set_ylabel("mean NFE")
    axes.grid(color=GRID)
    _legend_beside(axes)
    return _png(pyplot, figure)


def reward_terms(pyplot: Any, films: Sequence[Film]) -> bytes:
    """What each decision of some films was paid: bars a term, stacked; the line is the sum so far."""
    figure, grid = pyplot.subplots(
        1, len(films), figsize=(2.4 * len(films) + 1.4, 2.9), sharey=True, squeeze=False, layout="constrained"
    )
    names = list(dict.fromkeys(name for film in films for name in film.terms))
    colours = dict(zip(names, (GREY, BLUE, *PALETTE) * (1 + len(names) // 10), strict=False))
    for axes, film in zip(grid.flat, films, strict=True):
        at = np.arange(len(film.actions)) + 1
        above, below = np.zeros(len(at)), np.zeros(len(at))
        for name in names:
            values = np.array(film.terms.get(name, np.zeros(len(at))))
            axes.bar(at, values, bottom=np.where(values >= 0, above, below), color=colours[name], width=0.7)
            above, below = above + np.maximum(values, 0), below + np.minimum(values, 0)
        axes.plot(at, np.cumsum(above + below), "-o", color=RED, markersize=3, linewidth=1)
        axes.axhline(0, color=GREY, linewidth=0.6)
        axes.set_title(film.role, fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colours[name]) for name in names]
    figure.legend(handles, names, fontsize=7, frameon=False, loc="outside upper center", ncols=len(names))
    figure.supxlabel("decision", fontsize=9)
    figure.supylabel("reward", fontsize=9)
    return _png(pyplot, figure)


def save_figures(found: Mapping[str, bytes], folder: Path) -> None:
    """Writes each figure as ``<folder>/<stem>.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, png in found.items():
        (folder / f"{stem}.png").write_bytes(png)


def _png(pyplot: Any, figure: Any) -> bytes:
    buffer = io.BytesIO()
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    # No software name or date in the file: the same records give the same bytes.
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackageError(
            "reports need matplotlib, which is not installed", "pip install 'addiffusion-env[eval]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    return pyplot

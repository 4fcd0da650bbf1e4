"""The figures of a report, from records and their summary; matplotlib, without a display.

A figure is as wide as the page's text, so that it is shown at its own size, and no text is smaller than
:data:`SMALL`. Legends are placed below the axes, where they cover no data. Single values are not plotted.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from addiffusion_env.engine.process import Action
from addiffusion_env.envs.rendering import ACTION_COLOURS
from addiffusion_env.errors import MissingPackageError
from addiffusion_env.evaluation.decision_tree import decision_tree, legend_above
from addiffusion_env.evaluation.filmstrips import Filmstrip, draw_filmstrip
from addiffusion_env.evaluation.records import Record, by_sampler
from addiffusion_env.evaluation.series import (
    BEHIND,
    BLUE,
    FIXED,
    GREY,
    PALETTE,
    RED,
    Label,
    series_of,
    write_labels,
)
from addiffusion_env.evaluation.statistics import Interval, t_interval
from addiffusion_env.evaluation.store import png_bytes
from addiffusion_env.evaluation.summary import SamplerRow, Summary
from addiffusion_env.evaluation.tables import column

GRID = "#e3e5e8"
LABELS = {
    "correct": "share correct (detector)",
    "preference": "preference (standard deviations)",
    "nfe": "mean NFE (guided evaluations per image)",
    "seconds": "mean seconds per image (wall clock)",
}
WIDTH, DPI = 8.0, 130
"""Width in inches, and pixels per inch: 1040 pixels, the width of the report's text."""
FONT, SMALL = 9, 8
"""Font sizes in points: of axes, and the minimum. At 130 pixels per inch 8 points are 14 pixels."""
NAME = 60
"""Maximum length of a sampler's name in a legend; longer ones are shortened in the middle."""
TIMELINE_ROWS = 64
WIDE = 6.0
"""Costs that differ by more than this factor are drawn on a logarithmic axis."""


def figures(records: Sequence[Record], summary: Summary, filmstrips: Sequence[Filmstrip]) -> dict[str, bytes]:
    """Every figure of a report: file stem -> PNG file. Figures with a single value are left out.

    Raises:
        MissingPackageError: without matplotlib.
    """
    pyplot = load_pyplot()
    found = {stem: png_of(pyplot, figure) for stem, figure in plots(pyplot, records, summary, filmstrips).items()}
    return {
        **found,
        **{f"film_{number:02d}": png_bytes(draw_filmstrip(filmstrip)) for number, filmstrip in enumerate(filmstrips)},
    }


def plots(pyplot: Any, records: Sequence[Record], summary: Summary, filmstrips: Sequence[Filmstrip]) -> dict[str, Any]:
    """The matplotlib figures of a report by file stem."""
    groups = by_sampler(records)
    focus = groups[summary.focus]
    qualities = dict.fromkeys((summary.primary, "preference"))
    wanted = {
        **{"frontier" if q == summary.primary else f"frontier_{q}": (q, "nfe") for q in qualities},
        "frontier_seconds": (summary.primary, "seconds"),
    }
    found = {
        stem: frontier(pyplot, summary, *axes)
        for stem, axes in wanted.items()
        if _differ(_interval(row, axes[1]) for row in summary.samplers)
    }
    if _differ(record.nfe for record in focus):
        found["nfe_by_task"] = nfe_by_task(pyplot, focus, summary.focus)
    varying = {name: made for name, made in groups.items() if _differ(record.nfe for record in made)}
    if varying and _differ(record.constraints for record in records):
        found["nfe_by_constraints"] = nfe_by_constraints(pyplot, varying, summary)
    if _differ(record.actions for record in focus):
        found["timelines"] = timelines(pyplot, focus)
        found["decision_tree"] = decision_tree(pyplot, focus, _action_colours(), WIDTH, SMALL)
    paid = [filmstrip for filmstrip in filmstrips if filmstrip.sampler == summary.focus and filmstrip.terms]
    if paid:
        found["reward_terms"] = reward_terms(pyplot, paid)
    return found


def _differ(values: Iterable[Any]) -> bool:
    """Whether there are two distinct values."""
    return len(set(values)) > 1


def frontier(pyplot: Any, summary: Summary, quality: str, cost: str) -> Any:
    """Quality against cost with 95 % intervals of both; fixed schedules are joined, and so are a policy's points."""
    figure, axes = pyplot.subplots(figsize=(WIDTH, 4.2))
    axes.margins(y=0.12)  # room for the texts of the outermost points
    known = {row.sampler: row for row in summary.samplers if _interval(row, quality) is not None}
    labels = []
    for series in series_of(summary):
        points: list[tuple[str, Any, Any]] = [
            (name, _interval(known[name], cost), _interval(known[name], quality))
            for name in series.rows
            if name in known
        ]
        if not points:
            continue
        points.sort(key=lambda point: point[1].estimate)
        at, up = [x.estimate for _, x, _ in points], [y.estimate for _, _, y in points]
        line = {"linestyle": "-" if series.joined else "none", "linewidth": 1, "label": series.name}
        axes.plot(at, up, color=series.colour, marker=series.marker, markersize=5, **line)
        if series.name == FIXED:  # a band: bars would hide the line
            band = [y.low for _, _, y in points], [y.high for _, _, y in points]
            axes.fill_between(at, *band, color=series.colour, alpha=0.15, linewidth=0)
        for name, x, y in points:
            label = Label(x.estimate, y.estimate, series.rows[name], series.colour)
            if series.name != FIXED:
                _bars(axes, x, y, series.colour)
                upright = (x.estimate, y.low), (x.estimate, y.high)
                label = replace(label, bars=(upright, ((x.low, y.estimate), (x.high, y.estimate))))
            labels.append(label)
            if name == summary.focus:
                axes.plot(x.estimate, y.estimate, "D", color=series.colour, markersize=7)
    _spread(axes, "x", [_interval(row, cost).estimate for row in known.values()])  # type: ignore[union-attr]
    axes.set_xlabel(LABELS[cost])
    axes.set_ylabel(LABELS[quality])
    axes.grid(color=GRID)
    legend_below(figure, axes)
    write_labels(figure, axes, labels, SMALL)
    return figure


def _spread(axes: Any, name: str, spent: Sequence[float]) -> None:
    """Makes the axis of costs (``"x"`` or ``"y"``) logarithmic where they differ so much that most would overlap."""
    from matplotlib import ticker

    if min(spent, default=0.0) > 0 and max(spent) > WIDE * min(spent):
        axes.set(**{f"{name}scale": "log"})
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.set_minor_formatter(ticker.NullFormatter())


def _shortened(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 20]}...{name[-17:]}"


def legend_below(figure: Any, axes: Any) -> None:
    """The legend below the axes, where it covers no data, in as many columns as fit; the figure grows by its rows."""
    handles, names = axes.get_legend_handles_labels()
    names = [_shortened(name) for name in names]
    letters = max(map(len, names))
    columns = min(len(names), max(1, int(WIDTH * 72 / (SMALL * (0.62 * letters + 5)))))
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(names) // columns))
    # Only the marker of a point with error bars: bars in a legend would overlap.
    handles = [handle[0] if isinstance(handle, tuple) else handle for handle in handles]
    figure.legend(handles, names, fontsize=SMALL, frameon=False, loc="outside lower center", ncols=columns)


def _bars(axes: Any, across: Interval, up: Interval, colour: str) -> None:
    """The intervals of a point."""
    sides = [[[value.estimate - value.low], [value.high - value.estimate]] for value in (across, up)]
    axes.errorbar(across.estimate, up.estimate, sides[1], sides[0], fmt="none", ecolor=colour, elinewidth=1, capsize=2)


def _interval(row: SamplerRow, name: str) -> Interval | None:
    return getattr(row, name)


def nfe_by_task(pyplot: Any, records: Sequence[Record], title: str) -> Any:
    """Histograms of NFE, one for each kind of prompt, on one axis."""
    tasks = sorted({record.task for record in records})
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(WIDTH, 1.75 * rows + 0.5), sharex=True, sharey=True, squeeze=False
    )
    spent = [record.nfe for record in records]
    edges = np.arange(np.floor(min(spent)) - 0.5, np.ceil(max(spent)) + 1.5)
    for axes, task in zip(grid.flat, tasks, strict=False):
        own = [record.nfe for record in records if record.task == task]
        axes.hist(own, bins=edges, weights=np.full(len(own), 1 / len(own)), color=BLUE)
        axes.axvline(float(np.mean(own)), color=RED, linewidth=1.2)
        name = task if len(task) <= 24 else f"{task[:22]}..."
        axes.set_title(f"{name}\nn={len(own)}, mean {np.mean(own):.1f}", fontsize=SMALL)
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in list(grid.flat)[len(tasks) :]:
        axes.set_visible(False)
    for axes in grid[-2] if len(tasks) % columns else ():
        axes.xaxis.set_tick_params(labelbottom=True)  # where there is no axis below
    figure.supxlabel(f"NFE of {_shortened(title)}", fontsize=FONT)
    figure.supylabel("share of images", fontsize=FONT)
    return figure


def nfe_by_constraints(pyplot: Any, groups: Mapping[str, Sequence[Record]], summary: Summary) -> Any:
    """Mean NFE against the number of constraints, for every sampler whose NFE varies over prompts."""
    figure, axes = pyplot.subplots(figsize=(WIDTH, 3.6))
    labels, spread = [], []
    for series in series_of(summary):
        label = series.name
        for name in (name for name in series.rows if name in groups):
            constraints = sorted({record.constraints for record in groups[name]})
            spent = [
                column((record for record in groups[name] if record.constraints == value), "nfe")
                for value in constraints
            ]
            means = [float(values.mean()) for values in spent]
            bars = [t_interval(values, 0.95) if len(values) > 1 else None for values in spent]  # one prompt has none
            axes.errorbar(
                constraints,
                means,
                yerr=[np.nan if bar is None else bar.high - bar.estimate for bar in bars],
                fmt=f"{series.marker}-",
                color=series.colour,
                linewidth=2 if name == summary.focus else 1,
                markersize=4,
                capsize=2,
                label=label,
            )
            label = "_" + label  # the legend leaves it out: one entry a series
            labels.append(Label(constraints[-1], means[-1], series.rows[name], series.colour))
            spread += means
    _spread(axes, "y", spread)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(x=0.12)  # room for the texts behind the lines
    axes.set_xlabel("constraints of the prompt")
    axes.set_ylabel("mean NFE")
    axes.grid(color=GRID)
    legend_below(figure, axes)
    write_labels(figure, axes, sorted(labels, key=lambda label: label.y), SMALL, BEHIND)
    return figure


def timelines(pyplot: Any, records: Sequence[Record]) -> Any:
    """One row per image, one cell per decision in its action's colour; by kind of prompt, then by NFE.

    At most :data:`TIMELINE_ROWS` images are shown, evenly spaced in that order.
    """
    ordered = sorted(records, key=lambda record: (record.task, record.nfe, record.uid))
    shown = np.linspace(0, len(ordered) - 1, min(TIMELINE_ROWS, len(ordered))).round().astype(int)
    rows = [ordered[place] for place in shown]
    longest = max(len(row.actions) for row in rows)
    cells = np.array([(*row.actions, *[np.nan] * (longest - len(row.actions))) for row in rows])
    figure, axes = pyplot.subplots(figsize=(WIDTH, 0.17 * len(rows) + 0.9))
    colours = list(_action_colours().values())
    edges = np.arange(longest + 1) + 0.5, np.arange(len(rows) + 1)
    axes.pcolormesh(
        *edges,
        np.ma.masked_invalid(cells),
        cmap=pyplot.matplotlib.colors.ListedColormap(colours),
        vmin=-0.5,
        vmax=len(colours) - 0.5,
        edgecolors="white",
        linewidth=1.5,
    )
    tasks = [row.task for row in rows]
    first = [tasks.index(task) for task in dict.fromkeys(tasks)]
    names = [task if len(task) <= 24 else f"{task[:22]}..." for task in dict.fromkeys(tasks)]
    axes.set_yticks([start + tasks.count(tasks[start]) / 2 for start in first], names)
    axes.hlines(first[1:], 0.5, max(longest, 10) + 0.5, color=GREY, linewidth=0.6)
    axes.set_xlim(0.5, max(longest, 10) + 0.5)
    axes.set_ylim(len(rows), 0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("decision")
    named = {Action(action).name.lower(): colour for action, colour in _action_colours().items()}
    legend_above(pyplot, figure, named, SMALL)
    return figure


def _action_colours() -> dict[int, tuple[float, ...]]:
    """Action -> its colour, as matplotlib takes it."""
    return {action: tuple(np.array(ACTION_COLOURS[action]) / 255) for action in sorted(ACTION_COLOURS)}


def reward_terms(pyplot: Any, filmstrips: Sequence[Filmstrip]) -> Any:
    """Reward of each decision of some filmstrips: stacked bars, one per term; the line is the cumulative sum."""
    figure, grid = pyplot.subplots(1, len(filmstrips), figsize=(WIDTH, 2.9), sharey=True, squeeze=False)
    names = list(dict.fromkeys(name for filmstrip in filmstrips for name in filmstrip.terms))
    colours = dict(zip(names, (GREY, *PALETTE) * (1 + len(names) // 10), strict=False))
    for axes, filmstrip in zip(grid.flat, filmstrips, strict=True):
        at = np.arange(len(filmstrip.actions)) + 1
        above, below = np.zeros(len(at)), np.zeros(len(at))
        for name in names:
            values = np.array(filmstrip.terms.get(name, np.zeros(len(at))))
            axes.bar(at, values, bottom=np.where(values >= 0, above, below), color=colours[name], width=0.7)
            above, below = above + np.maximum(values, 0), below + np.minimum(values, 0)
        axes.plot(at, np.cumsum(above + below), "-o", color=RED, markersize=3, linewidth=1)
        axes.axhline(0, color=GREY, linewidth=0.6)
        axes.set_title(filmstrip.role, fontsize=SMALL)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
    legend_above(pyplot, figure, colours, SMALL)
    figure.supxlabel("decision", fontsize=FONT)
    figure.supylabel("reward", fontsize=FONT)
    return figure


def save_figures(found: Mapping[str, bytes], folder: Path) -> None:
    """Writes each figure as ``<folder>/<stem>.png``, or under its stem where that has a suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, data in found.items():
        (folder / (stem if "." in stem else f"{stem}.png")).write_bytes(data)


def png_of(pyplot: Any, figure: Any) -> bytes:
    """A figure as a PNG file; the figure is closed."""
    buffer = io.BytesIO()
    # No software name or date in the file: the same records give the same bytes.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()


def load_pyplot() -> Any:
    """Matplotlib's pyplot, without a display and in the style of the reports.

    Raises:
        MissingPackageError: without matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackageError(
            "reports need matplotlib, which is not installed", "pip install 'addiffusion-env[eval]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": FONT})
    pyplot.rcParams.update({"xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "figure.constrained_layout.use": True})
    return pyplot

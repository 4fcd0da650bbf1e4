"""``docs/results.md`` and its plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from addiffusion_env.evaluation.plots import FONT, GRID, MARKERS, WIDTH, legend_below, load_pyplot, png_of
from addiffusion_env.evaluation.statistics import share_interval
from addiffusion_lab.study.arms import Arm, Clock, Gain
from addiffusion_lab.study.claims import Claim

POLICY_COLOUR = "#c2410c"
NFE_TICKS = (1, 2, 3, 4, 5, 6, 8, 12, 20, 50, 100)
SECOND_TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)


@dataclass(frozen=True)
class Section:
    """A heading and its Markdown lines."""

    title: str
    lines: Sequence[str]


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table."""
    return [
        "| " + " | ".join(head) + " |",
        "| " + " | ".join("---" for _ in head) + " |",
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
    ]


def verdicts(claims: Sequence[Claim]) -> list[str]:
    """The claims, each line a condition."""
    lines = []
    for claim in claims:
        lines.append(f"- **{claim.name}: {'holds' if claim.holds else 'does not hold in full'}**")
        lines.extend(f"    - {line}" for line in claim.lines)
    return lines


def arm_table(arms: Sequence[Arm], clock: Clock, rng: np.random.Generator) -> list[str]:
    """Every arm: share correct with Wilson-type interval, mean NFE, seconds added up from its parts' costs."""
    rows = []
    for arm in arms:
        share = share_interval(arm.correct, rng)
        seconds = float(clock.seconds(arm).mean())
        rows.append((arm.name, str(share), f"{arm.nfe.mean():.2f}", f"{arm.calls.mean():.1f}", f"{seconds:.3f}"))
    return table(("method", "correct [95 %]", "mean NFE", "network calls", "seconds, added up"), rows)


def gain_tables(found: Mapping[str, Mapping[str, Sequence[Gain]]]) -> list[str]:
    """Gains at equal cost, a table a cost."""
    lines: list[str] = []
    for cost, families in found.items():
        spots = [gain.at for gain in next(iter(families.values()))]
        head = ("against", *(f"{spot:.3g} {cost}" for spot in spots))
        rows = [
            (name, *(f"{gain.gain.estimate:+.3f} [{gain.gain.low:+.3f}, {gain.gain.high:+.3f}]" for gain in row))
            for name, row in families.items()
        ]
        lines += ["", f"At equal {cost}:", "", *table(head, rows)]
    return lines


def card_results(policy: Sequence[Arm], clock: Clock, rng: np.random.Generator) -> dict[str, Any]:
    """What the policy's card shows, as :func:`addiffusion_env.agents.policy_file.read_results` reads it."""
    rows = []
    for arm in policy:
        share = share_interval(arm.correct, rng, 0.95)
        rows.append(
            {
                "method": f"policy@{arm.name.rsplit('@')[-1]}",
                "correct": {name: round(getattr(share, name), 3) for name in ("estimate", "low", "high")},
                "nfe": {"estimate": round(float(arm.nfe.mean()), 2)},
                "seconds": {"estimate": round(float(clock.seconds(arm).mean()), 3)},
            }
        )
    return {
        "about": f"{len(policy[0].correct)} test prompts of the emoji grammar, picture seed 0, judged by the emoji "
        "detector. Seconds are no wall clock of whole pictures: they are added up from what a network call, a look and "
        "a decode cost, measured at 16 lanes on two CPU cores.",
        "command": "python -m addiffusion_lab.study",
        "rows": rows,
    }


def task_table(arms: Sequence[Arm], tasks: Sequence[str]) -> list[str]:
    """Share correct (mean NFE) of each arm on each task."""
    names = np.array(tasks)
    kinds = [str(kind) for kind in np.unique(names)]
    rows = [
        (
            arm.name,
            *(f"{arm.correct[names == kind].mean():.2f} ({arm.nfe[names == kind].mean():.1f})" for kind in kinds),
        )
        for arm in arms
    ]
    counts = [f"{kind} ({int((names == kind).sum())})" for kind in kinds]
    return table(("method", *counts), rows)


def frontier_plot(families: Mapping[str, Sequence[Arm]], clock: Clock, level: float = 0.95) -> Any:
    """Share correct against mean NFE and against seconds, a line a family, bars the interval over prompts: a figure."""
    pyplot = load_pyplot()
    figure, panels = pyplot.subplots(1, 2, figsize=(WIDTH, 4.2), sharey=True)
    costs = (
        ("mean NFE", lambda arm: arm.nfe.mean()),
        ("seconds a picture, added up from its parts", lambda arm: clock.seconds(arm).mean()),
    )
    others = iter(zip(pyplot.get_cmap("tab10").colors, MARKERS * 2, strict=False))
    rng = np.random.default_rng(0)
    for name, family in families.items():
        ours = name.startswith("policy")
        colour, marker = (POLICY_COLOUR, "D") if ours else next(others)
        for axes, (label, cost) in zip(panels, costs, strict=True):
            ordered = sorted(family, key=cost)
            x = [cost(arm) for arm in ordered]
            y = [arm.correct.mean() for arm in ordered]
            bounds = [share_interval(arm.correct, rng, level) for arm in ordered]
            error = np.array([[v - b.low, b.high - v] for v, b in zip(y, bounds, strict=True)]).T
            style = {
                "fmt": marker + ("-" if ours else "--"),
                "lw": 2.2 if ours else 1.2,
                "color": colour,
                "zorder": 4 if ours else 2,
            }
            axes.errorbar(x, y, yerr=error, ms=4, label=name, capsize=2, **style)
            axes.set_xlabel(label)
            axes.set_xscale("log")
            axes.grid(color=GRID)
    panels[0].set_ylabel("share of pictures that are right")
    for axes, ticks in zip(panels, (NFE_TICKS, SECOND_TICKS), strict=True):
        low, high = axes.get_xlim()
        shown = [tick for tick in ticks if low <= tick <= high]
        axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
        axes.minorticks_off()
    legend_below(figure, panels[0])
    return figure


def curve_plot(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Any:
    """Learning curves of several runs: regret and NFE of the greedy policy at the middle price; a figure."""
    pyplot = load_pyplot()
    figure, panels = pyplot.subplots(1, 3, figsize=(WIDTH, 2.8))
    shown = (("regret_to_constant", "regret to the best constant"), ("regret_to_oracle", "regret to the oracle"))
    for axes, (key, label) in zip(panels, (*shown, ("nfe", "mean NFE")), strict=True):
        for name, history in curves.items():
            axes.plot([row["decisions"] / 1000 for row in history], [row[key] for row in history], label=name, lw=1.5)
        axes.set_xlabel("thousand decisions")
        axes.set_title(label, fontsize=FONT)
        axes.grid(color=GRID)
    panels[0].axhline(0, color="black", lw=0.8)
    legend_below(figure, panels[0])
    return figure


def save(figure: Any, path: Path) -> None:
    """Writes a figure as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_of(load_pyplot(), figure))


def write(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Writes the page."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", "", *section.lines, ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")

"""Content of a report as sections, which are rendered as Markdown and as HTML."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any

from addiffusion_env.backbones.identity import networks_in
from addiffusion_env.evaluation.filmstrips import Filmstrip
from addiffusion_env.evaluation.frontier import FrontierGain
from addiffusion_env.evaluation.manifest import Manifest, SamplerEntry
from addiffusion_env.evaluation.records import Record
from addiffusion_env.evaluation.statistics import Interval
from addiffusion_env.evaluation.summary import SamplerRow, Summary, TaskRow


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        stem: stem of its file; ``.png`` unless it has a suffix.
        caption: text below it.
        width: displayed width in pixels; ``None`` is its own width.
    """

    stem: str
    caption: str
    width: int | None = None

    @property
    def file(self) -> str:
        """Its file's name."""
        return self.stem if "." in self.stem else f"{self.stem}.png"


@dataclass(frozen=True)
class Table:
    """A table of texts and figures.

    Attributes:
        head: column heads.
        rows: rows with as many cells.
        strong: index of the row to highlight, or ``None``.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str | Figure, ...], ...]
    strong: int | None = None

    @property
    def has_figures(self) -> bool:
        """Whether a cell holds a figure."""
        return any(isinstance(cell, Figure) for row in self.rows for cell in row)


@dataclass(frozen=True)
class Section:
    """A heading and its parts in order: paragraphs, tables, figures."""

    title: str
    parts: tuple[str | Table | Figure, ...] = field(default_factory=tuple)


def sections(
    records: Sequence[Record],
    summary: Summary,
    manifest: Manifest,
    filmstrips: Sequence[Filmstrip],
    drawn: Container[str],
) -> list[Section]:
    """The sections of a report, in order; with figures whose stems are in ``drawn``."""
    return [
        _comparison(summary, manifest),
        _quality_against_cost(summary, drawn),
        _differences(summary),
        _spending(records, summary, drawn),
        _tasks(summary),
        _collapse(summary),
        _filmstrip_section(records, filmstrips, summary.focus),
        _settings(summary, manifest),
    ]


def _comparison(summary: Summary, manifest: Manifest) -> Section:
    prompts, seeds = len(manifest.prompt_ids), len(manifest.seeds)
    names = [row.sampler for row in summary.samplers]
    # Some samplers record further numbers: an oracle's choice, the number of gradients.
    extra = tuple(dict.fromkeys(name for row in summary.samplers for name in row.extra))
    heads = ("sampler", "mean NFE", "correct", "preference", "CLIP", *extra, "seconds", "GiB", "images")
    table = Table(heads, tuple(_sampler_cells(row, extra) for row in summary.samplers), names.index(summary.focus))
    return Section(
        "Side by side",
        (
            f"{prompts} prompts, {seeds} seed{'s' if seeds != 1 else ''} each, backbone {manifest.backbone}. "
            "Means over prompts with 95 % intervals: Wilson's for correctness, bootstrap otherwise. "
            "One guided evaluation counts 1 NFE; attempts, early exits and refinements are included. "
            "Correctness is judged by rules on the output of a detector that no reward uses; some samplers select "
            "by preference, so preference decides no claim alone. "
            "Seconds are wall-clock time without judging: a sampler's time over its images, with lanes batched, but "
            "one image at a time for samplers that run their own diffusers pipeline; within a batch time is divided by "
            "network calls. Memory is the peak while a sampler ran, of all lanes.",
            table,
            *(f"{measure}: {words}." for measure, words in manifest.scorers.items()),
        ),
    )


def _sampler_cells(row: SamplerRow, extra: Sequence[str]) -> tuple[str, ...]:
    return (
        row.sampler,
        _short(row.nfe, 2),
        "-" if row.correct is None else str(row.correct),
        _short(row.preference, 2, signed=True),
        f"{row.clip_score.estimate:.3f}",
        *(_short(row.extra[name], 3) if name in row.extra else "-" for name in extra),
        f"{row.seconds.estimate:.2f}",
        "-" if row.peak_memory is None else f"{row.peak_memory / 2**30:.2f}",
        str(row.images),
    )


def _quality_against_cost(summary: Summary, drawn: Container[str]) -> Section:
    parts: list[str | Table | Figure] = [
        Figure(
            "frontier",
            "Quality against mean NFE. Grey: fixed schedules by their number of steps. Other numbers stand for the "
            f"ellipsis of a name in the legend; the large diamond is {summary.focus}.",
        )
    ]
    for gain, cost in ((summary.frontier, "nfe"), (summary.frontier_seconds, "seconds")):
        if gain is not None:
            parts.append(_gain_words(summary, gain, cost))
    parts.append(Figure("frontier_preference", "The same measured by preference (not held out)."))
    parts.append(Figure("frontier_seconds", "Quality against wall-clock seconds per image on this machine."))
    shown = tuple(part for part in parts if not isinstance(part, Figure) or part.stem in drawn)
    return Section("Quality against cost", shown or ("Nothing to compare: one sampler, or one cost for all.",))


def _gain_words(summary: Summary, gain: FrontierGain, cost: str) -> str:
    left, right = gain.between
    quality, unit = f"{summary.primary} {gain.frontier:.3f}", {"nfe": "NFE"}.get(cost, cost)
    spent: Interval = next(getattr(row, cost) for row in summary.samplers if row.sampler == left)
    if left != right:
        other, equal = f"the strongest constant, a mixture of {left} and {right} with {quality}", "equal "
    elif not gain.reached:
        other, equal = f"the most expensive constant, {left} with {quality} at {spent.estimate:.2f}", ""
    elif spent.estimate > 1.01 * gain.cost:
        other, equal = f"the cheapest constant, {left} with {quality} at {spent.estimate:.2f}", ""
    else:
        other, equal = f"the strongest constant, {left} with {quality}", "equal "
    return f"At {equal}mean {unit} ({gain.cost:.2f}), {summary.focus} minus {other}: {gain.gain.signed}."


def _differences(summary: Summary) -> Section:
    rows = tuple(
        (
            row.sampler,
            _signed(row.quality, 3),
            _signed(row.preference, 2),
            _signed(row.nfe, 2),
            f"{row.seconds.estimate:+.2f}",
            p_text(row.test.p),
            p_text(row.holm.adjusted) + (" *" if row.holm.rejected else ""),
        )
        for row in summary.pairs
    )
    head = ("against", summary.primary, "preference", "NFE", "seconds", "p (Wilcoxon)", "p (Holm)")
    parts: list[str | Table | Figure] = [
        f"{summary.focus} minus each other sampler, paired by prompt and seed: mean and 95 % interval, Tango's "
        "score interval for correctness, bootstrap otherwise. "
        "* is below .05 after Holm's adjustment over this table. A large p is no evidence of equality.",
        Table(head, rows),
    ]
    if summary.non_inferiority is not None:
        test = summary.non_inferiority
        verdict = "is not inferior" if test.holds else "is not shown to be non-inferior"
        parts.append(
            f"{summary.focus} {verdict} to {summary.reference} within {test.margin:g} in {summary.primary}: "
            f"difference {test.difference.estimate:+.4f}, 90 % interval "
            f"[{test.difference.low:+.4f}, {test.difference.high:+.4f}], one-sided p {p_text(test.p)}."
        )
    return Section(f"Differences from {summary.focus}", tuple(parts))


def _spending(records: Sequence[Record], summary: Summary, drawn: Container[str]) -> Section:
    focus = next(record for record in records if record.sampler == summary.focus)
    parts: list[str | Table | Figure] = []
    if "nfe_by_task" in drawn:
        parts.append(Figure("nfe_by_task", f"NFE of {summary.focus} by kind of prompt; red is the mean."))
    else:
        parts.append(f"Every image of {summary.focus} took {focus.nfe:g} NFE.")
    if "nfe_by_constraints" in drawn:
        words = (
            "Mean NFE by the number of constraints of the prompt, 95 % bars; samplers with constant NFE are omitted."
        )
        parts.append(Figure("nfe_by_constraints", words))
    if (rho := summary.difficulty) is not None:
        parts.append(
            f"Rank correlation of NFE with constraints: {rho.statistic:+.3f} over {rho.n} prompts, "
            f"permutation p {p_text(rho.p)}."
        )
    elif len({record.constraints for record in records}) == 1:
        known = f"has {focus.constraints} constraints" if focus.constraints else "has an unknown number of constraints"
        parts.append(f"The relation of NFE and constraints cannot be estimated: every prompt {known}.")
    if "timelines" in drawn:
        words = "One row per image, one cell per decision, by kind of prompt and NFE; evenly spaced if there are more"
        parts.append(Figure("timelines", f"{words}. At a finished image stop accepts it."))
    if "decision_tree" in drawn:
        words = "Which actions follow which: the height of a box is its share of the images"
        parts.append(Figure("decision_tree", f"{words}; beside it those that ended there."))
    return Section("Distribution of NFE", tuple(parts))


def _tasks(summary: Summary) -> Section:
    cells = {(row.task, row.sampler): row for row in summary.tasks}
    tasks = sorted({row.task for row in summary.tasks})
    images = {task: max(row.images for row in summary.tasks if row.task == task) for task in tasks}
    names = [row.sampler for row in summary.samplers]
    rows = tuple((name, *(_task_cell(cells.get((task, name))) for task in tasks)) for name in names)
    table = Table(("sampler", *(f"{task} ({images[task]})" for task in tasks)), rows, names.index(summary.focus))
    shown = "Share correct" if summary.primary == "correct" else "Preference"
    return Section("By task", (f"{shown} and mean NFE for each kind of prompt, images in brackets.", table))


def _task_cell(row: TaskRow | None) -> str:
    if row is None:
        return "-"
    quality = f"{row.preference:+.2f}" if row.correct is None else f"{row.correct:.3f}"
    return f"{quality} at {row.nfe:.1f}"


def _collapse(summary: Summary) -> Section:
    rows = tuple(
        (
            name,
            "collapsed" if found.collapsed else "varies",
            f"{found.constant_share:.3f}",
            f"{found.step_entropy:.3f}",
            f"{found.behaviour_entropy:.2f}",
            f"{found.nfe_spread:.2f}",
            " / ".join(f"{share:.2f}" for share in found.action_shares),
            found.reason,
        )
        for name, found in summary.behaviours.items()
    )
    head = ("sampler", "verdict", "constant share", "bits per decision", "bits of behaviour", "NFE spread")
    parts: list[str | Table | Figure] = []
    if rows:
        parts.append(Table((*head, "continue / stop / refine", "why"), rows))
    if (lost := summary.regret) is not None:
        parts.append(
            f"Net preference is preference minus {lost.cost_per_nfe:g} per NFE. {summary.focus}: {lost.utility:+.3f}; "
            f"best constant in hindsight, {lost.best_constant}: {lost.constant_utility:+.3f} "
            f"(regret {lost.to_constant:+.3f}); oracle over the constants: {lost.oracle_utility:+.3f} at "
            f"{lost.oracle_nfe:.2f} NFE (regret {lost.to_oracle:+.3f})."
        )
    return Section("Collapse watch", tuple(parts) or ("All samplers are constant by their definition.",))


def _filmstrip_section(records: Sequence[Record], filmstrips: Sequence[Filmstrip], focus: str) -> Section:
    by_uid = {record.uid: record for record in records}
    rows = []
    for number, filmstrip in enumerate(filmstrips):
        record = by_uid.get(filmstrip.uid)
        if record is None:
            continue
        changed = "" if record.actions == filmstrip.actions else " (regenerated with other actions: not reproducible)"
        words = f"{filmstrip.sampler}, {filmstrip.role}: {cut(record.prompt)!r}, seed {record.seed}{changed}"
        told = f"{judged(record)}; preference {record.preference:+.2f}"
        rows.append((words, Figure(f"film_{number:02d}", told)))
    if not rows:
        return Section("Filmstrips", ("None were made.",))
    parts: list[str | Table | Figure] = [
        "The image after each action, the finished one last; bars in the action's colour, preference where scored. "
        "Grey: a further attempt that has not begun.",
        Table(("prompt", "filmstrip"), tuple(rows)),
    ]
    if any(filmstrip.sampler == focus and filmstrip.terms for filmstrip in filmstrips):
        caption = "Reward of each decision, by term; the red line is the cumulative sum. One panel per filmstrip."
        parts.append(Figure("reward_terms", f"{focus}: {caption}"))
    return Section("Filmstrips", tuple(parts))


def judged(record: Record) -> str:
    """Cost and verdict of an image."""
    if record.correct is None:
        return f"{record.nfe:g} NFE"
    mark, why = ("\N{CHECK MARK}", "") if record.correct else ("\N{BALLOT X}", f": {cut(record.reason)}")
    return f"{mark} {record.nfe:g} NFE{why}"


def cut(text: str, most: int = 200) -> str:
    """The beginning of a prompt, so that captions stay short."""
    return text if len(text) <= most else f"{text[:most]}..."


def _settings(summary: Summary, manifest: Manifest) -> Section:
    margins = tuple(
        (f"{entry.margin:g}", entry.set_at, "before any record" if not entry.records_before else
         f"after {entry.records_before} records")
        for entry in manifest.margins
    )  # fmt: skip
    processes = tuple(
        (entry.name, _settings_words({k: v for k, v in entry.process.items() if k != "refine"}), _refine_words(entry))
        for entry in manifest.samplers
    )
    settings = tuple((key, cut(str(value), 2000)) for key, value in manifest.settings.items())
    return Section(
        "Settings and versions",
        (
            f"Prompts: {len(manifest.prompt_ids)}, sha1 of their ids {manifest.prompts_digest}; "
            f"seeds {', '.join(map(str, manifest.seeds))}. The margin of non-inferiority was set:",
            Table(("margin", "set at", "when"), margins),
            Table(("sampler", "process", "refine"), processes),
            Table(("setting", "value"), settings),
            _models(manifest),
            Table(("package", "version"), tuple(manifest.versions.items())),
        ),
    )


def _models(manifest: Manifest) -> str | Table:
    """The weights of every network that generated, scored or judged the images."""
    if not manifest.identity:
        return "The weights that generated and judged these images are unknown: they were recorded by an older version."
    head = ("network", "class", "precision", "sha256 of its weights", "adapters")
    rows = tuple(
        (
            place,
            part["class"].rpartition(".")[2],
            ", ".join(part["dtype"]),
            part["weights"][:16],
            ", ".join(part.get("adapter_scales", ())),
        )
        for place, part in networks_in(manifest.identity)
    )
    return Table(head, rows)


def _refine_words(entry: SamplerEntry) -> str:
    refine = entry.process.get("refine", {})
    return _settings_words(refine) if refine.get("enabled") else "off"


def _settings_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def _short(interval: Interval, digits: int, signed: bool = False) -> str:
    sign = "+" if signed else ""
    estimate, low, high = (f"{value:{sign}.{digits}f}" for value in (interval.estimate, interval.low, interval.high))
    return estimate if low == high else f"{estimate} [{low}, {high}]"


def _signed(interval: Interval, digits: int) -> str:
    return _short(interval, digits, signed=True)


def p_text(value: float) -> str:
    """A p-value as text; a dash where there is none."""
    if isnan(value):
        return "-"
    return "< .0001" if value < 1e-4 else f"{value:.4f}"

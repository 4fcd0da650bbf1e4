"""Writes summary.json, report.md, one self-contained report.html and a gallery from the records of a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from addiffusion_env.errors import RunFolderError
from addiffusion_env.evaluation.extras import EXTRAS, Reported
from addiffusion_env.evaluation.filmstrips import read_filmstrips
from addiffusion_env.evaluation.gallery import PAGE, write_gallery
from addiffusion_env.evaluation.manifest import read_manifest, write_text
from addiffusion_env.evaluation.plots import figures, save_figures
from addiffusion_env.evaluation.rendering import PLOTS_FOLDER, to_html, to_markdown
from addiffusion_env.evaluation.runner import RECORDS_FOLDER
from addiffusion_env.evaluation.samples import sample_section
from addiffusion_env.evaluation.sections import sections
from addiffusion_env.evaluation.store import OTHER_OUT, RecordStore
from addiffusion_env.evaluation.summary import Summary, summarise
from addiffusion_env.files import writing_to

TITLE = "AdDiffusion evaluation"


@dataclass(frozen=True)
class Report:
    """Paths and content of a report.

    Attributes:
        html: path of the self-contained HTML file.
        markdown: path of the Markdown file, with figures in ``plots`` next to it.
        summary_json: path of the numbers.
        gallery: path of the page with a card for every image; its images are in ``gallery`` next to it.
        summary: the numbers, in memory.
        extras: key of an extra -> what it reported; see :mod:`.extras`.
    """

    html: Path
    markdown: Path
    summary_json: Path
    gallery: Path
    summary: Summary
    extras: Mapping[str, Reported] = field(default_factory=dict)


def write_report(out_dir: Path | str) -> Report:
    """Reads a folder's manifest, records and filmstrips; writes its report and gallery.

    The same records give the same report; an evaluation that is complete is reported again by the same command.

    Args:
        out_dir: of an evaluation.

    Raises:
        ConfigError: when there are claims to judge and no judge is independent.
        RunFolderError: when there is no evaluation, none of its records, or the folder cannot be written.
        MissingPackageError: without the packages of the ``eval`` extra.
    """
    folder = Path(out_dir)
    manifest = read_manifest(folder)
    store = RecordStore(folder / RECORDS_FOLDER)
    records = manifest.select(store.read())
    if not records:
        raise RunFolderError(f"{folder} holds no record of its evaluation", "run eval_sb3.py with this out= again")
    summary = summarise(records, manifest)
    filmstrips = read_filmstrips(folder)
    drawn = figures(records, summary, filmstrips)
    written = sections(records, summary, manifest, filmstrips, drawn)
    side_by_side, thumbnails = sample_section(records, manifest, folder)
    if side_by_side is not None:
        written.insert(1, side_by_side)
        drawn.update(thumbnails)
    extras = {}
    for key in EXTRAS:
        kind = EXTRAS.load(key)
        extras[key] = kind.report(records, manifest, folder)
        place = 0 if kind.first else len(written) - 1
        written[place:place] = extras[key].sections
    with writing_to(folder / PLOTS_FOLDER, "write", OTHER_OUT):
        save_figures(drawn, folder / PLOTS_FOLDER)
    results = {key: found.results for key, found in extras.items() if found.results is not None}
    plain, links = {**asdict(summary), **results}, {f"Gallery of all {len(records)} images": PAGE}
    return Report(
        html=write_text(folder / "report.html", to_html(TITLE, written, drawn, links)),
        markdown=write_text(folder / "report.md", to_markdown(TITLE, written, links)),
        summary_json=write_text(folder / "summary.json", json.dumps(_plain(plain), indent=1)),
        gallery=write_gallery(folder, records, manifest, store),
        summary=summary,
        extras=extras,
    )


def _plain(value: Any) -> Any:
    """Plain JSON: tuples as lists, NaN and infinity as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value


FILE_WIDTH = 120
"""Width of output to a file or a pipe."""


def print_report(report: Report) -> None:
    """Prints the table of samplers, the output of extras, and the path of the report."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, FILE_WIDTH))
    table = Table(*(Column(head, no_wrap=True) for head in ("sampler", "mean NFE", "correct", "preference", "seconds")))
    for row in report.summary.samplers:
        means = [f"{value.estimate:.2f}" for value in (row.nfe, row.preference, row.seconds)]
        cells = (means[0], str(row.correct or "-"), *means[1:])
        table.add_row(row.sampler, *cells, style="bold" if row.sampler == report.summary.focus else "")
    console.print(table)
    for found in report.extras.values():
        if found.show is not None:
            found.show(console)
    print(f"report: {report.html.resolve()}", flush=True)

"""summary.json, report.md and one self-contained report.html, from the records of a folder alone."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from addiffusion_env.errors import RunFolderError
from addiffusion_env.evaluation.extras import EXTRAS, Reported
from addiffusion_env.evaluation.films import read_films
from addiffusion_env.evaluation.manifest import read_manifest, write_text
from addiffusion_env.evaluation.plots import figures, save_figures
from addiffusion_env.evaluation.runner import RECORDS_FOLDER
from addiffusion_env.evaluation.samples import sample_section
from addiffusion_env.evaluation.sections import Figure, Section, Table, sections
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.evaluation.summary import Summary, summarise

PLOTS_FOLDER = "plots"
TITLE = "AdDiffusion evaluation"
LEAST_SHOWN = 720
"""Pixels below which no plot is shrunk: its smallest letters are then 10 pixels high."""

_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #202124; max-width: 1080px; margin: 2rem auto; padding: 0 1.2rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #dadce0 }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; margin: .8rem 0 }
th, td { padding: .28rem .7rem; text-align: left; border-bottom: 1px solid #eceef0; vertical-align: top;
  font-variant-numeric: tabular-nums } th { background: #f4f5f7 } tr.strong td { background: #fdf0ee; font-weight: 600 }
figure { margin: 1rem 0; overflow-x: auto } img { max-width: 100%; height: auto }
figcaption { font-size: 13px; color: #5f6368 } td figure { margin: 0 } td img { max-width: none; display: block }
.pictures { max-height: 92vh; overflow: auto } .pictures td { padding: .28rem .2rem }
.pictures th { overflow-wrap: anywhere; position: sticky; top: 0; z-index: 1 }
.pictures :is(th, td):first-child { left: 0 } .pictures th:first-child { z-index: 2 }
.pictures td:first-child { position: sticky; background: #fff; min-width: 7rem; max-width: 14rem }
@media print { .pictures { max-height: none } }
nav a { margin-right: 1rem } p { max-width: 76ch; overflow-wrap: anywhere }
"""


@dataclass(frozen=True)
class Report:
    """Where a report is, and what it says.

    Attributes:
        html: one file with everything in it.
        markdown: with figures in ``plots`` beside it.
        summary_json: the numbers.
        summary: the same, in memory.
        extras: key of an extra -> what it reported; see :mod:`.extras`.
    """

    html: Path
    markdown: Path
    summary_json: Path
    summary: Summary
    extras: Mapping[str, Reported] = field(default_factory=dict)


def write_report(out_dir: Path | str) -> Report:
    """Reads a folder's manifest, records and films; writes its report. The same records give the same report.

    Args:
        out_dir: of an evaluation.

    Raises:
        ConfigError: when claims are to be judged, and no judge is independent.
        RunFolderError: when there is no evaluation, none of its records, or the folder cannot be written.
        MissingPackageError: without the packages of the ``eval`` extra.
    """
    folder = Path(out_dir)
    manifest = read_manifest(folder)
    records = manifest.select(RecordStore(folder / RECORDS_FOLDER).read())
    if not records:
        raise RunFolderError(f"{folder} holds no record of its evaluation", "run eval_sb3.py with this out= again")
    summary = summarise(records, manifest)
    films = read_films(folder)
    drawn = figures(records, summary, films)
    written = sections(records, summary, manifest, films, drawn)
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
    try:
        save_figures(drawn, folder / PLOTS_FOLDER)
    except OSError as error:
        raise RunFolderError(
            f"cannot write {folder / PLOTS_FOLDER}: {error.strerror}", "choose another out="
        ) from error
    results = {key: found.results for key, found in extras.items() if found.results is not None}
    plain = {**asdict(summary), **results}
    return Report(
        html=write_text(folder / "report.html", to_html(TITLE, written, drawn)),
        markdown=write_text(folder / "report.md", to_markdown(TITLE, written)),
        summary_json=write_text(folder / "summary.json", json.dumps(_plain(plain), indent=1)),
        summary=summary,
        extras=extras,
    )


def to_markdown(title: str, written: Sequence[Section]) -> str:
    """Sections as GitHub Markdown; figures are files in ``plots``."""
    lines = [f"# {_md(title)}", ""]
    for section in written:
        lines += [f"## {_md(section.title)}", ""]
        for part in section.parts:
            if isinstance(part, Table):
                lines += _md_table(part)
            elif isinstance(part, Figure):
                lines += [_md_image(part), "", f"*{_md(part.caption)}*"]
            else:
                lines.append(_md(part))
            lines.append("")
    return "\n".join(lines)


def _md_table(table: Table) -> list[str]:
    rows = [[_md(cell) for cell in table.head], ["---"] * len(table.head)]
    for number, row in enumerate(table.rows):
        cells = [_md_cell(cell) for cell in row]
        rows.append([f"**{cell}**" if number == table.strong and cell else cell for cell in cells])
    return ["| " + " | ".join(row) + " |" for row in rows]


def _md_cell(cell: str | Figure) -> str:
    return _md(cell) if isinstance(cell, str) else f"{_md_image(cell)} {_md(cell.caption)}"


def _md_image(figure: Figure) -> str:
    return f"![{_md(figure.caption)}]({PLOTS_FOLDER}/{figure.file})"


def _visible(text: str) -> str:
    """Text without characters that act instead of being seen: control characters and changes of direction."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def _md(text: str) -> str:
    """Text that Markdown shows as it is."""
    text = _visible(text)
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def to_html(title: str, written: Sequence[Section], drawn: Mapping[str, bytes]) -> str:
    """Sections as one HTML file: style and figures inside, every text escaped, no script, nothing fetched."""
    links = "".join(f'<a href="#s{n}">{_html(section.title)}</a>' for n, section in enumerate(written))
    body = "".join(_html_section(number, section, drawn) for number, section in enumerate(written))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_html(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><h1>{_html(title)}</h1><nav>{links}</nav>\n{body}</body></html>\n"
    )


def _html(text: str) -> str:
    """Text that HTML shows as it is, in elements and in attributes."""
    return html.escape(_visible(text))


def _html_section(number: int, section: Section, drawn: Mapping[str, bytes]) -> str:
    parts = "\n".join(_html_part(part, drawn) for part in section.parts)
    return f'<section id="s{number}"><h2>{_html(section.title)}</h2>\n{parts}\n</section>\n'


def _html_part(part: str | Table | Figure, drawn: Mapping[str, bytes]) -> str:
    if isinstance(part, Table):
        head = "".join(f"<th>{_html(cell)}</th>" for cell in part.head)
        rows = "".join(
            f"<tr{' class=strong' if number == part.strong else ''}>"
            + "".join(f"<td>{_html_cell(cell, drawn)}</td>" for cell in row)
            + "</tr>\n"
            for number, row in enumerate(part.rows)
        )
        kind = "pictures" if any(isinstance(cell, Figure) for row in part.rows for cell in row) else "scroll"
        return f'<div class="{kind}"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'
    if isinstance(part, Figure):
        return _html_figure(part, drawn[part.stem], LEAST_SHOWN)
    return f"<p>{_html(part)}</p>"


def _html_cell(cell: str | Figure, drawn: Mapping[str, bytes]) -> str:
    return _html(cell) if isinstance(cell, str) else _html_figure(cell, drawn[cell.stem])


def _html_figure(figure: Figure, data: bytes, least: int = 0) -> str:
    """A figure as a data URL; a screen that is narrower than ``least`` pixels scrolls it instead of shrinking it."""
    with Image.open(io.BytesIO(data)) as picture:
        kind, width = str(picture.format).lower(), picture.width
    shown = figure.width or width
    style = f"min-width: {min(shown, least)}px" + ("; image-rendering: pixelated" if shown > width else "")
    caption = _html(figure.caption)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    image = f'<img src="{source}" width="{shown}" style="{style}" alt="{caption}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


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

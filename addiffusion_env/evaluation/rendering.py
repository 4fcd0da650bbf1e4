"""Sections of a report as GitHub Markdown and as one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

from markupsafe import Markup
from PIL import Image

from addiffusion_env.evaluation.sections import Figure, Section, Table
from addiffusion_env.pages import markdown, markdown_table, render

PLOTS_FOLDER = "plots"
LEAST_SHOWN = 720
"""Minimum width of a plot in pixels: its smallest letters are then 10 pixels high."""


def to_markdown(title: str, written: Sequence[Section], links: Mapping[str, str] | None = None) -> str:
    """Sections as GitHub Markdown; figures are files in ``plots``; ``links`` are further pages, by their title."""

    def image(figure: Figure) -> Markup:
        return Markup(f"![{markdown(figure.caption)}]({PLOTS_FOLDER}/{figure.file})")

    def cell(content: str | Figure, strong: bool) -> str:
        if isinstance(content, Figure):
            return f"{image(content)} {markdown(content.caption)}"
        text = markdown(content)
        return f"**{text}**" if strong and text else text

    def table(part: Table) -> Markup:
        rows = [[cell(content, number == part.strong) for content in row] for number, row in enumerate(part.rows)]
        return Markup(markdown_table([markdown(name) for name in part.head], rows))

    return render("report.md", {"image": image, "table": table}, title=title, sections=written, links=links or {})


def to_html(
    title: str, written: Sequence[Section], drawn: Mapping[str, bytes], links: Mapping[str, str] | None = None
) -> str:
    """Sections as one HTML file: style and figures inside, every text escaped, without scripts or external resources.

    On screens narrower than :data:`LEAST_SHOWN` pixels a plot scrolls instead of shrinking. ``links`` are further
    pages, by their title.
    """

    def embedded(figure: Figure) -> dict[str, str | int]:
        with Image.open(io.BytesIO(drawn[figure.stem])) as image:
            kind, width = str(image.format).lower(), image.width
        source = f"data:image/{kind};base64,{base64.b64encode(drawn[figure.stem]).decode()}"
        return {"source": source, "width": width, "shown": figure.width or width}

    values = {"title": title, "sections": written, "links": links or {}, "least_shown": LEAST_SHOWN}
    return render("report.html", {"image": embedded}, **values)

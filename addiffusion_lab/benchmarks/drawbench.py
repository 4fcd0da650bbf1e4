"""DrawBench (Saharia et al. 2022): 200 prompts in eleven categories. Its licence is unknown, so it is not shipped."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from addiffusion_env.errors import PromptError
from addiffusion_env.prompts import Prompt
from addiffusion_lab.benchmarks.base import Benchmark, PromptNumbering
from addiffusion_lab.benchmarks.origin import About, HubOrigin, Origin, clean

FILE = "drawbench.csv"
PROMPT_COLUMNS = ("Prompts", "Prompt")
"""Header of the sheet, and of copies."""


class DrawBenchPrompts(Benchmark):
    """The prompts of the DrawBench sheet, saved as CSV; the task is the category.

    The category "Gary Marcus et al. " has a trailing blank in the sheet, which is stripped. See
    :class:`Benchmark` for arguments and errors.
    """

    about: ClassVar[About] = About(
        name="drawbench",
        title="DrawBench",
        folder="drawbench",
        files=(FILE,),
        url="https://imagen.research.google (the sheet behind 'DrawBench', saved as CSV)",
        licence="licence unknown",
        counts={
            "Colors": 25,
            "Conflicting": 10,
            "Counting": 19,
            "DALL-E": 20,
            "Descriptions": 20,
            "Gary Marcus et al.": 10,
            "Misspellings": 10,
            "Positional": 20,
            "Rare Words": 7,
            "Reddit": 38,
            "Text": 21,
        },
        hub="sayakpaul/drawbench@ad794cba698c253ffdb6d18eff3fc87b004c1135",
    )

    def read(self, origin: Origin) -> Iterable[Prompt]:
        """The sheet's rows."""
        number = PromptNumbering(self.about.name)
        for index, (place, prompt, category) in enumerate(_rows(origin)):
            text, task = clean(prompt, place), clean(category, place)
            yield Prompt(text, number(text, task), task=task, metadata={"index": index, "original": prompt})


def _rows(origin: Origin) -> Iterator[tuple[str, Any, Any]]:
    """(place, prompt, category) of the sheet or of the hub's table."""
    if isinstance(origin, HubOrigin):
        for place, entry in origin.rows(("Prompts", "Category")):
            yield place, entry["Prompts"], entry["Category"]
        return
    document = origin.document(FILE)
    rows = csv.reader(io.StringIO(document.text, newline=""), strict=True)
    columns: tuple[int, int] | None = None
    try:
        for row in rows:
            place = document.place(rows.line_num)
            if columns is None:
                columns = _columns(row, place)
            elif any(field.strip() for field in row):
                if len(row) <= max(columns):
                    raise PromptError(
                        f"{place}: expected a prompt and a category, got {len(row)} field", "save it again"
                    )
                yield place, row[columns[0]], row[columns[1]]
    except csv.Error as error:
        raise PromptError(
            f"{document.place(rows.line_num)}: not CSV: {error}", "save the sheet as CSV again"
        ) from error


def _columns(header: list[str], place: str) -> tuple[int, int]:
    names = [name.strip() for name in header]
    prompt = next((name for name in PROMPT_COLUMNS if name in names), None)
    if prompt is None or "Category" not in names:
        raise PromptError(
            f"{place}: expected the columns Prompts and Category, got {', '.join(names)!r:.200}",
            "save the sheet as CSV",
        )
    return names.index(prompt), names.index("Category")

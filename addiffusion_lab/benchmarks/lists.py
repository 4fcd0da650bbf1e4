"""Benchmarks that are plain lists: PartiPrompts, HPDv2, ImageReward's prompts and DrawBench; no data is shipped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from addiffusion_env.errors import PromptError
from addiffusion_env.prompts import Prompt
from addiffusion_lab.benchmarks.base import Benchmark, PromptNumbering
from addiffusion_lab.benchmarks.origin import About, HubOrigin, Origin, clean, malformed

HEADER = ["Prompt", "Category", "Challenge", "Note"]


class PartiPrompts(Benchmark):
    """The prompts of ``PartiPrompts.tsv``; the task is the category.

    Quotes are part of the prompts: the file does not use CSV quoting, which would strip them. Ten prompts start or end
    with blanks; those are stripped, and the original text is in ``metadata["original"]``. ``metadata`` has
    ``challenge`` and ``note``, too. See :class:`Benchmark` for arguments and errors.
    """

    about: ClassVar[About] = About(
        name="parti",
        title="PartiPrompts",
        folder="parti",
        files=("PartiPrompts.tsv",),
        url="https://github.com/google-research/parti",
        licence="Apache-2.0",
        counts={
            "Abstract": 51,
            "World Knowledge": 214,
            "People": 177,
            "Animals": 314,
            "Outdoor Scenes": 131,
            "Artifacts": 287,
            "Food & Beverage": 74,
            "Vehicles": 104,
            "Arts": 66,
            "Indoor Scenes": 40,
            "Produce & Plants": 50,
            "Illustrations": 124,
        },
        hub="nateraw/parti-prompts@944b156abfdad7627c3221b5ec4f6a6fb060a197",
    )

    def read(self, origin: Origin) -> Iterable[Prompt]:
        """The file's rows: four fields, separated by tabs."""
        document = origin.document("PartiPrompts.tsv")
        number = PromptNumbering(self.about.name)
        lines = document.lines()
        if (header := next(lines)[1].split("\t")) != HEADER:
            raise malformed(
                document.place(1), f"expected the columns {', '.join(HEADER)}, got {', '.join(header)!r:.200}"
            )
        for index, (line, text) in enumerate(entry for entry in lines if entry[1]):
            fields = text.split("\t")
            if len(fields) != len(HEADER):
                raise malformed(
                    document.place(line), f"expected {len(HEADER)} fields separated by tabs, got {len(fields)}"
                )
            original, category, challenge, note = fields
            prompt = clean(original, document.place(line))
            metadata = {"index": index, "challenge": challenge.strip(), "note": note.strip(), "original": original}
            yield Prompt(prompt, number(prompt), task=clean(category, document.place(line)), metadata=metadata)


STYLES = ("anime", "concept-art", "paintings", "photo")


class HPDv2Prompts(Benchmark):
    """The prompts of ``benchmark/{anime,concept-art,paintings,photo}.json``, plain lists; the task is the style.

    ``metadata["index"]`` counts within a style: HPSv2's scorer wants ``<style>/{index:05d}.jpg``. Some prompts
    occur twice; both are kept, under different ids. A path to one file reads that style alone. See :class:`Benchmark`
    for arguments and errors.
    """

    about: ClassVar[About] = About(
        name="hpdv2",
        title="HPDv2",
        folder="hpdv2",
        files=tuple(f"{style}.json" for style in STYLES),
        url="https://huggingface.co/datasets/zhwang/HPDv2/tree/main/benchmark",
        licence="see its dataset card",
        counts={style: 800 for style in STYLES},
        places=("", "benchmark"),
        hub="zhwang/HPDv2@b9517430f34b1080d4f741118d2a440155a165cd",
    )

    def read(self, origin: Origin) -> Iterable[Prompt]:
        """The four lists in the order of ``STYLES``."""
        number = PromptNumbering(self.about.name)
        for style in _styles(origin):
            folder = "benchmark/" if isinstance(origin, HubOrigin) else ""
            document = origin.document(f"{folder}{style}.json")
            texts = document.json()
            if not isinstance(texts, list):
                raise malformed(document.name, f"expected a JSON list of prompts, got {type(texts).__name__}")
            for index, text in enumerate(texts):
                prompt = clean(text, f"{document.name}, prompt {index + 1}")
                yield Prompt(prompt, number(prompt, style), task=style, metadata={"index": index})

    def counts(self, origin: Origin) -> dict[str, int]:
        """800 per style."""
        return {style: self.about.counts[style] for style in _styles(origin)}


def _styles(origin: Origin) -> tuple[str, ...]:
    if not origin.single:
        return STYLES
    name = str(origin).rpartition("/")[2].removesuffix(".json")
    if name not in STYLES:
        raise PromptError(f"{origin} is not a style of HPDv2", f"name the file after one of {', '.join(STYLES)}")
    return (name,)


class ImageRewardPrompts(Benchmark):
    """The prompts of ``benchmark-prompts.json``, a list of ``{"id", "prompt"}``; ids are those of the file.

    See :class:`Benchmark` for arguments and errors.
    """

    about: ClassVar[About] = About(
        name="imagereward",
        title="ImageReward's benchmark",
        folder="imagereward",
        files=("benchmark-prompts.json",),
        url="https://github.com/THUDM/ImageReward/tree/main/benchmark",
        licence="Apache-2.0",
        counts={"real_user": 100},
        places=("", "benchmark"),
    )

    def read(self, origin: Origin) -> Iterable[Prompt]:
        """The file's list."""
        document = origin.document("benchmark-prompts.json")
        entries = document.json()
        if not isinstance(entries, list):
            raise malformed(document.name, f"expected a JSON list, got {type(entries).__name__}")
        seen: set[str] = set()
        for index, entry in enumerate(entries):
            place = f"{document.name}, prompt {index + 1}"
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
                raise malformed(place, "expected an object with id and prompt")
            if (own := clean(entry["id"], place)) in seen:
                raise malformed(place, f"the id {own!r:.80} occurs twice")
            seen.add(own)
            text = clean(entry.get("prompt"), place)
            yield Prompt(
                text, f"imagereward-{own}", task="real_user", metadata={"index": index, "original": entry["prompt"]}
            )


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
        files=("drawbench.csv",),
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
    document = origin.document("drawbench.csv")
    columns: tuple[int, int] | None = None
    for place, row in document.table("save the sheet as CSV again"):
        if columns is None:
            columns = _columns(row, place)
        elif len(row) <= max(columns):
            raise PromptError(f"{place}: expected a prompt and a category, got {len(row)} field", "save it again")
        else:
            yield place, row[columns[0]], row[columns[1]]


def _columns(header: list[str], place: str) -> tuple[int, int]:
    names = [name.strip() for name in header]
    prompt = next((name for name in PROMPT_COLUMNS if name in names), None)
    if prompt is None or "Category" not in names:
        raise PromptError(
            f"{place}: expected the columns Prompts and Category, got {', '.join(names)!r:.200}",
            "save the sheet as CSV",
        )
    return names.index(prompt), names.index("Category")

"""PartiPrompts (Yu et al. 2022): 1,632 prompts in twelve categories and eleven challenges."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from addiffusion_env.errors import PromptError
from addiffusion_env.prompts import Prompt
from addiffusion_lab.benchmarks.base import Benchmark, PromptNumbering
from addiffusion_lab.benchmarks.origin import About, Origin, clean

FILE = "PartiPrompts.tsv"
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
        files=(FILE,),
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
        document = origin.document(FILE)
        number = PromptNumbering(self.about.name)
        lines = document.lines()
        if (header := next(lines)[1].split("\t")) != HEADER:
            raise PromptError(
                f"{document.place(1)}: expected the columns {', '.join(HEADER)}, got {', '.join(header)!r:.200}",
                "take the file as published",
            )
        for index, (line, text) in enumerate(entry for entry in lines if entry[1]):
            fields = text.split("\t")
            if len(fields) != len(HEADER):
                raise PromptError(
                    f"{document.place(line)}: expected {len(HEADER)} fields separated by tabs, got {len(fields)}",
                    "take the file as published",
                )
            original, category, challenge, note = fields
            prompt = clean(original, document.place(line))
            metadata = {"index": index, "challenge": challenge.strip(), "note": note.strip(), "original": original}
            yield Prompt(prompt, number(prompt), task=clean(category, document.place(line)), metadata=metadata)

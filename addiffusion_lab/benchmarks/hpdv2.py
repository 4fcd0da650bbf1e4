"""HPDv2's benchmark prompts (Wu et al. 2023, HPSv2): 800 each in four styles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from addiffusion_env.errors import PromptError
from addiffusion_env.prompts import Prompt
from addiffusion_lab.benchmarks.base import Benchmark, PromptNumbering
from addiffusion_lab.benchmarks.origin import About, HubOrigin, Origin, clean

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
                raise PromptError(
                    f"{document.name}: expected a JSON list of prompts, got {type(texts).__name__}",
                    "take the file as published",
                )
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

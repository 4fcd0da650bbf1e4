"""T2I-CompBench++ (Huang et al. 2023): attributes, relations, counts and mixtures of them, 300 test prompts each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from addiffusion_env.errors import PromptError, unknown
from addiffusion_env.prompts import Prompt
from addiffusion_lab.benchmarks.base import Benchmark, PromptNumbering, World, filled_lines
from addiffusion_lab.benchmarks.origin import About, HubOrigin, Origin, PathOrigin, clean

CATEGORIES = ("color", "shape", "texture", "spatial", "3d_spatial", "non_spatial", "numeracy", "complex")
KINDS = ("spatial", "action", "spatialaction")
Split = Literal["val", "train", "all"]
_SPLITS: dict[str, tuple[str, int]] = {"val": ("_val", 300), "train": ("_train", 700), "all": ("", 1000)}
_PUBLISHED = {("all", "color"): 860}  # the only list with another length


class T2ICompBenchPrompts(Benchmark):
    """The prompts of ``{category}_{split}.txt``, one per line; the task is the category.

    Files without a final line end and lines ending in CR LF are read correctly. Training lists
    contain some prompts twice; both are kept, under different ids. ``metadata["index"]`` counts within a category, as
    the scorers do. A ``complex`` prompt has ``metadata["kind"]`` (``spatial``, ``action``, ``spatialaction``), which
    its score needs, where the lists of kinds exist.

    Args:
        path: a folder of the lists or a checkout of the repository; or one list with any name, whose expected count
            is unknown; its task is its category, otherwise its name. See also :class:`Benchmark`.
        world: see :class:`Benchmark`.
        partial: see :class:`Benchmark`.
        split: ``val`` is used for published scores; ``all`` is both.
        categories: those of ``CATEGORIES`` to read; all when ``None``.

    Raises:
        UnknownNameError: for an unknown split or category. For other errors see :class:`Benchmark`.
    """

    about: ClassVar[About] = About(
        name="t2i_compbench",
        title="T2I-CompBench",
        folder="t2i_compbench",
        files=tuple(f"{category}_val.txt" for category in CATEGORIES),
        url="https://github.com/Karine-Huang/T2I-CompBench/tree/main/examples/dataset",
        licence="MIT",
        counts={category: 300 for category in CATEGORIES},
        places=("", "examples/dataset"),
        hub="NinaKarine/t2i-compbench@18f3f268acaf39c89f8a3afcc2b471243042c927",
    )

    def __init__(
        self,
        path: str | Path | None = None,
        world: World = "any",
        partial: bool = False,
        split: Split = "val",
        categories: Sequence[str] | None = None,
    ) -> None:
        if split not in _SPLITS:
            raise unknown("split", split, _SPLITS)
        for category in categories or ():
            if category not in CATEGORIES:
                raise unknown("category", category, CATEGORIES)
        self.split = split
        self.categories = CATEGORIES if categories is None else tuple(dict.fromkeys(categories))
        super().__init__(path, world, partial)

    def read(self, origin: Origin) -> Iterable[Prompt]:
        """The categories' lists, one after the other."""
        number = PromptNumbering(self.about.name)
        suffix, _ = _SPLITS[self.split]
        for name, task in self._lists(origin):
            kinds = _kinds(origin, suffix) if task == "complex" else {}
            for index, (place, text) in enumerate(_texts(origin, name)):
                prompt = clean(text, place)
                kind = {"kind": kinds[prompt]} if prompt in kinds else {}
                yield Prompt(prompt, number(prompt, task), task=task, metadata={"index": index, **kind})

    def counts(self, origin: Origin) -> dict[str, int]:
        """The published counts; unknown for a list that was given by its path."""
        if origin.single:
            return {}
        usual = _SPLITS[self.split][1]
        return {category: _PUBLISHED.get((self.split, category), usual) for category in self.categories}

    def _lists(self, origin: Origin) -> list[tuple[str, str]]:
        """(file name without suffix, task) of each list."""
        if origin.single:
            stem = Path(str(origin)).stem
            category, _, split = stem.rpartition("_")
            return [(stem, category if category in CATEGORIES and split in _SPLITS else stem)]
        suffix, _ = _SPLITS[self.split]
        return [(f"{category}{suffix}", category) for category in self.categories]


def _texts(origin: Origin, name: str) -> Iterator[tuple[str, Any]]:
    """(place, prompt) of one list: a text file, or a table of the hub with that name."""
    if isinstance(origin, HubOrigin):
        for place, row in origin.rows(("text",), config=name):
            if str(row["text"]).strip():
                yield place, row["text"]
        return
    document = origin.document(f"{name}.txt")
    for line, text in filled_lines(document.lines()):
        yield document.place(line), text


def _kinds(origin: Origin, suffix: str) -> dict[str, str]:
    """Prompt -> kind, for mixtures whose lists of kinds exist."""
    if not isinstance(origin, PathOrigin) or not suffix:
        return {}
    found: dict[str, str] = {}
    for kind in KINDS:
        if origin.find(f"complex{suffix}_{kind}.txt") is not None:
            for place, text in _texts(origin, f"complex{suffix}_{kind}"):
                prompt = clean(text, place)
                if found.setdefault(prompt, kind) != kind:
                    raise PromptError(f"{place}: the prompt is {found[prompt]} already", "take the files as published")
    return found

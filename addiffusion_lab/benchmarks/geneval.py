"""GenEval (Ghosh et al. 2023): 553 prompts on objects, counts, colours and positions, machine-readable."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from addiffusion_env.prompts import Prompt
from addiffusion_env.prompts.emoji_grammar import Group, Scene
from addiffusion_env.prompts.emoji_vocabulary import CLASSES, COLORS, RELATIONS
from addiffusion_lab.benchmarks.base import Benchmark, PromptNumbering, filled_lines
from addiffusion_lab.benchmarks.emoji_world import make_scene
from addiffusion_lab.benchmarks.origin import About, Document, Origin, clean, malformed

FILE = "evaluation_metadata.jsonl"
_CLASS = {item.name: index for index, item in enumerate(CLASSES)}
_JOINT = re.compile(rf" (?:and|{'|'.join(RELATIONS)}) ")


class GenEvalPrompts(Benchmark):
    """The prompts of GenEval's ``evaluation_metadata.jsonl``.

    The task is the file's ``tag``. ``metadata["entry"]`` is the original line with all fields: the official scorer
    needs it (see :mod:`addiffusion_lab.benchmarks.export`).

    With ``world="emoji"`` the prompts of the 67 classes that the emoji world draws carry a :class:`Scene`, so its
    detector judges them. Its rule is stricter than GenEval's: the image must contain nothing else, and
    counts must be exact in every task. See :class:`Benchmark` for arguments and errors.
    """

    about: ClassVar[About] = About(
        name="geneval",
        title="GenEval",
        folder="geneval",
        files=(FILE,),
        url="https://github.com/djghosh13/geneval/tree/main/prompts",
        licence="MIT",
        counts={
            "single_object": 80,
            "two_object": 99,
            "counting": 80,
            "colors": 94,
            "position": 100,
            "color_attr": 100,
        },
        places=("", "prompts"),
    )

    def read(self, origin: Origin) -> Iterable[Prompt]:
        """The file's lines, one JSON object each."""
        document = origin.document(FILE)
        number = PromptNumbering(self.about.name)
        for index, (line, text) in enumerate(filled_lines(document.lines())):
            entry = read_entry(document, line, text)
            prompt = clean(entry["prompt"], document.place(line))
            yield Prompt(
                prompt,
                number(prompt),
                task=clean(entry["tag"], document.place(line)),
                phrases=phrases(prompt, len(entry["include"])),
                constraints=constraints(entry),
                metadata={"index": index, "entry": entry},
            )

    def scene(self, prompt: Prompt) -> Scene | None:
        """The scene described by the entry's fields."""
        return emoji_scene(prompt.metadata["entry"], prompt.text)


def read_entry(document: Document, line: int, text: str) -> dict[str, Any]:
    """Checks one line of the file and returns it unchanged.

    Raises:
        PromptError: for anything that the official scorer could not read, with file and line.
    """
    entry = document.json(text, line)
    if problem := _problem(entry):
        raise malformed(document.place(line), f"{problem}")
    return entry


def _problem(entry: Any) -> str:
    """What is wrong with an entry; empty when nothing is."""
    if not isinstance(entry, dict):
        return f"expected a JSON object, got {type(entry).__name__}"
    for key in ("tag", "include", "prompt"):
        if key not in entry:
            return f"the field {key!r} is missing"
    if not isinstance(entry["tag"], str):
        return f"tag must be text, got {entry['tag']!r:.80}"
    for key in ("include", "exclude"):
        items = entry.get(key, [])
        if not (isinstance(items, list) and all(isinstance(item, dict) for item in items)):
            return f"{key} must be a list of objects, got {items!r:.80}"
        for item in items:
            if problem := _item_problem(item, len(items)):
                return f"{key}: {problem}"
    return "" if entry["include"] else "include is empty"


def _item_problem(item: Mapping[str, Any], count: int) -> str:
    if not isinstance(item.get("class"), str):
        return f"class must be text, got {item.get('class')!r:.80}"
    if type(item.get("count")) is not int or item["count"] < 1:
        return f"count must be a whole number above 0, got {item.get('count')!r:.80}"
    if "color" in item and not isinstance(item["color"], str):
        return f"color must be text, got {item['color']!r:.80}"
    if "position" in item:
        match item["position"]:
            case [str(), int(place)] if 0 <= place < count:
                return ""
            case other:
                return f"position must be [relation, index of an object], got {other!r:.80}"
    return ""


def phrases(text: str, count: int) -> tuple[str, ...]:
    """The noun phrases of a GenEval prompt, with their spelling; empty unless there are ``count``.

    >>> phrases("a photo of a dog right of a teddy bear", 2)
    ('a dog', 'a teddy bear')
    """
    parts = tuple(_JOINT.split(text.removeprefix("a photo of ")))
    return parts if len(parts) == count and all(parts) else ()


def constraints(entry: Mapping[str, Any]) -> int:
    """Number of constraints of an entry: one per class, colour, count above one, and position."""
    return sum(1 + ("color" in item) + (item["count"] > 1) + ("position" in item) for item in entry["include"])


def emoji_scene(entry: Mapping[str, Any], text: str) -> Scene | None:
    """The scene of an entry whose classes, colours, counts and position the emoji world knows, else ``None``.

    An entry lists the target of a position first and its subject second ("a dog right of a teddy bear" lists the teddy
    bear, then the dog); a scene has them in the order of the text.
    """
    items = list(entry["include"])
    relation: int | None = None
    placed = [item for item in items if "position" in item]
    if placed:
        if len(placed) > 1 or len(items) != 2:
            return None
        (subject,) = placed
        words, place = subject["position"]
        if items[place] is subject or words not in RELATIONS:
            return None
        items, relation = [subject, items[place]], RELATIONS.index(words)
    groups = [group for item in items if (group := _group(item)) is not None]
    if len(groups) < len(items) or not _exclusions_hold(entry, items):
        return None
    return make_scene(groups, relation, text)


def _group(item: Mapping[str, Any]) -> Group | None:
    color = item.get("color")
    if item["class"] not in _CLASS or not (color is None or color in COLORS):
        return None
    return Group(item["count"], _CLASS[item["class"]], 0 if color is None else 1 + COLORS.index(color))


def _exclusions_hold(entry: Mapping[str, Any], items: list[Mapping[str, Any]]) -> bool:
    """Whether exact counts imply everything in ``exclude`` ("two clocks, but not three")."""
    counts = {item["class"]: item["count"] for item in items}
    return all(
        "color" not in item and "position" not in item and item["count"] > counts.get(item["class"], 0)
        for item in entry.get("exclude", [])
    )

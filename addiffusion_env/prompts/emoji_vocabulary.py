"""Vocabulary and scenes of the emoji world.

The order of every tuple here is part of the trained weights: the detector's channels and the sprite atlas are indexed
by it. Append, never reorder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from addiffusion_env.errors import PromptError, unknown

IMAGE_SIZE = 64
"""Height and width of an image, pixels."""

MAX_OBJECTS = 4
"""Maximum number of sprites of a scene."""


class ObjectClass(NamedTuple):
    """One class of objects.

    Attributes:
        name: the COCO (GenEval) class name, singular.
        emoji: the character that its sprite is rendered from.
        plural: its dictionary plural.
    """

    name: str
    emoji: str
    plural: str

    @property
    def plain_plural(self) -> str:
        """The name with a bare "s", as GenEval writes counts ("two knifes"); unchanged when it ends in "s"."""
        return self.name if self.name.endswith("s") else self.name + "s"


CLASSES: tuple[ObjectClass, ...] = (
    ObjectClass("person", "🧍", "people"),
    ObjectClass("bicycle", "🚲", "bicycles"),
    ObjectClass("car", "🚗", "cars"),
    ObjectClass("motorcycle", "🏍️", "motorcycles"),
    ObjectClass("airplane", "✈️", "airplanes"),
    ObjectClass("bus", "🚌", "buses"),
    ObjectClass("train", "🚆", "trains"),
    ObjectClass("truck", "🚚", "trucks"),
    ObjectClass("boat", "⛵", "boats"),
    ObjectClass("traffic light", "🚦", "traffic lights"),
    ObjectClass("stop sign", "🛑", "stop signs"),
    ObjectClass("bird", "🐦", "birds"),
    ObjectClass("cat", "🐈", "cats"),
    ObjectClass("dog", "🐕", "dogs"),
    ObjectClass("horse", "🐎", "horses"),
    ObjectClass("sheep", "🐑", "sheep"),
    ObjectClass("cow", "🐄", "cows"),
    ObjectClass("elephant", "🐘", "elephants"),
    ObjectClass("bear", "🐻", "bears"),
    ObjectClass("zebra", "🦓", "zebras"),
    ObjectClass("giraffe", "🦒", "giraffes"),
    ObjectClass("backpack", "🎒", "backpacks"),
    ObjectClass("umbrella", "☂️", "umbrellas"),
    ObjectClass("handbag", "👜", "handbags"),
    ObjectClass("tie", "👔", "ties"),
    ObjectClass("suitcase", "🧳", "suitcases"),
    ObjectClass("frisbee", "🥏", "frisbees"),
    ObjectClass("skis", "🎿", "skis"),
    ObjectClass("snowboard", "🏂", "snowboards"),
    ObjectClass("sports ball", "⚽", "sports balls"),
    ObjectClass("kite", "🪁", "kites"),
    ObjectClass("skateboard", "🛹", "skateboards"),
    ObjectClass("surfboard", "🏄", "surfboards"),
    ObjectClass("tennis racket", "🎾", "tennis rackets"),
    ObjectClass("bottle", "🍾", "bottles"),
    ObjectClass("wine glass", "🍷", "wine glasses"),
    ObjectClass("cup", "☕", "cups"),
    ObjectClass("fork", "🍴", "forks"),
    ObjectClass("knife", "🔪", "knives"),
    ObjectClass("spoon", "🥄", "spoons"),
    ObjectClass("bowl", "🥣", "bowls"),
    ObjectClass("banana", "🍌", "bananas"),
    ObjectClass("apple", "🍎", "apples"),
    ObjectClass("sandwich", "🥪", "sandwiches"),
    ObjectClass("orange", "🍊", "oranges"),
    ObjectClass("broccoli", "🥦", "broccolis"),
    ObjectClass("carrot", "🥕", "carrots"),
    ObjectClass("hot dog", "🌭", "hot dogs"),
    ObjectClass("pizza", "🍕", "pizzas"),
    ObjectClass("donut", "🍩", "donuts"),
    ObjectClass("cake", "🎂", "cakes"),
    ObjectClass("chair", "🪑", "chairs"),
    ObjectClass("couch", "🛋️", "couches"),
    ObjectClass("potted plant", "🪴", "potted plants"),
    ObjectClass("bed", "🛏️", "beds"),
    ObjectClass("toilet", "🚽", "toilets"),
    ObjectClass("tv", "📺", "tvs"),
    ObjectClass("laptop", "💻", "laptops"),
    ObjectClass("computer mouse", "🖱️", "computer mice"),
    ObjectClass("computer keyboard", "⌨️", "computer keyboards"),
    ObjectClass("cell phone", "📱", "cell phones"),
    ObjectClass("book", "📕", "books"),
    ObjectClass("clock", "⏰", "clocks"),
    ObjectClass("vase", "🏺", "vases"),
    ObjectClass("scissors", "✂️", "scissors"),
    ObjectClass("teddy bear", "🧸", "teddy bears"),
    ObjectClass("toothbrush", "🪥", "toothbrushes"),
)

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""Colour words; a group's ``color`` is 0 for "unspecified" and ``1 + index`` otherwise."""

NUMBERS = ("zero", "one", "two", "three", "four")
"""Number words, indexed by the count."""

RELATIONS = ("left of", "right of", "above", "below")
"""Of the first object to the second; ``index ^ 1`` is the converse, ``index // 2`` the axis (0 is horizontal)."""

TASKS = ("single_object", "colors", "two_object", "counting", "position", "color_attr", "complex")
"""GenEval's six tasks, and mixtures of them."""

TASK_PROBABILITIES = (0.12, 0.14, 0.15, 0.16, 0.16, 0.13, 0.14)
"""Probability of each of ``TASKS``."""


def color_name(color: int) -> str:
    """The word for a group's ``color``; empty for 0.

    >>> color_name(1), color_name(0)
    ('red', '')
    """
    return "" if color == 0 else COLORS[color - 1]


def vocabulary_words() -> list[str]:
    """Every word that the grammar can write, sorted: each becomes one token of the tokenizer."""
    words = {*COLORS, *NUMBERS, "a", "an", "photo", "picture", "image", "of", "and", "to", "the", ",", "."}
    words.update(["left", "right", "above", "below"])
    for item in CLASSES:
        words.update(item.name.split(), item.plural.split(), item.plain_plural.split())
    return sorted(words)


@dataclass(frozen=True)
class Group:
    """Objects of one class and colour in a prompt.

    Attributes:
        count: how many, 1 to 4.
        cls: index into ``CLASSES``.
        color: 0 when the prompt does not specify one, else ``1 +`` the index into ``COLORS``.
    """

    count: int
    cls: int
    color: int = 0

    @property
    def name(self) -> str:
        """The class name, singular."""
        return CLASSES[self.cls].name


@dataclass(frozen=True)
class Scene:
    """Exact content that a prompt asks for.

    Attributes:
        task: one of ``TASKS``.
        groups: one to three groups of different classes, in the order of the text; at most four objects in all.
        relation: of the first object to the second, an index into ``RELATIONS``, or ``None``.
        text: the prompt.
    """

    task: str
    groups: tuple[Group, ...]
    relation: int | None
    text: str

    def __post_init__(self) -> None:
        if problem := contradiction(self.groups, self.relation):
            raise PromptError(f"no such scene {self.text!r}: {problem}", "see Scene for the allowed scenes")
        if self.task not in TASKS:
            raise unknown("task", self.task, TASKS)

    @property
    def object_count(self) -> int:
        """How many objects the image should show."""
        return sum(group.count for group in self.groups)

    @property
    def constraints(self) -> int:
        """Number of constraints: one per class, colour, count above one, and relation."""
        extras = sum((group.color > 0) + (group.count > 1) for group in self.groups)
        return len(self.groups) + extras + (self.relation is not None)


def contradiction(groups: Sequence[Group], relation: int | None) -> str:
    """Why these groups and relation are not a valid scene; empty when they are."""
    if not 1 <= len(groups) <= 3:
        return f"{len(groups)} groups, expected 1 to 3"
    if len({group.cls for group in groups}) < len(groups):
        return "two groups of one class"
    for group in groups:
        if not (group.count >= 1 and 0 <= group.cls < len(CLASSES) and 0 <= group.color <= len(COLORS)):
            return f"{group} is out of range"
    if (total := sum(group.count for group in groups)) > MAX_OBJECTS:
        return f"{total} objects, at most {MAX_OBJECTS} fit"
    if relation is not None and not (0 <= relation < len(RELATIONS) and [group.count for group in groups] == [1, 1]):
        return f"relation {relation} needs to be 0 to {len(RELATIONS) - 1}, between two single objects"
    return ""


def task_of(groups: Sequence[Group], relation: int | None) -> str:
    """The task of a scene with these groups and relation."""
    counts, colors = [group.count for group in groups], [group.color for group in groups]
    if len(groups) == 1:
        if counts[0] == 1:
            return "colors" if colors[0] else "single_object"
        return "complex" if colors[0] else "counting"
    if counts == [1, 1]:
        if not any(colors):
            return "two_object" if relation is None else "position"
        if relation is None and all(colors) and colors[0] != colors[1]:
            return "color_attr"
    return "complex"

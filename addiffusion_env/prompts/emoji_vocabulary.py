"""Vocabulary of the emoji world.

The order of every tuple here is part of the trained weights: the detector's channels and the sprite atlas are indexed
by it. Append, never reorder.
"""

from __future__ import annotations

from typing import NamedTuple

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

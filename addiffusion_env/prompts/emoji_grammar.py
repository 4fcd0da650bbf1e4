"""The grammar of the emoji world: scenes, prompts that describe them, and a parser.

A scene is at most three groups of objects ("two red cups"), with a relation when there are two single objects. The
grammar writes it as a prompt in GenEval's form, and :func:`parse` reads a prompt back into its scene, so that a user's
text can be judged by rule when it has this form.

Sampling is identical to that of the training data of the shipped weights: a seed gives the same scenes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from addiffusion_env.errors import PromptError, unknown
from addiffusion_env.prompts import Prompt, stable_hash, text_id
from addiffusion_env.prompts.emoji_vocabulary import (
    CLASSES,
    COLORS,
    MAX_OBJECTS,
    NUMBERS,
    RELATIONS,
    TASK_PROBABILITIES,
    TASKS,
    color_name,
)

Split = Literal["train", "test", "all"]
SPLITS: tuple[Split, ...] = ("train", "test", "all")

_PATIENCE = 100  # consecutive repeats after which EmojiPrompts.take considers a task exhausted


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


# ------------------------------------------------------------------------------------------------ drawing scenes


def sample_scene(rng: np.random.Generator, task: str | None = None) -> Scene:
    """Draws one scene and its prompt.

    Args:
        rng: the only source of randomness.
        task: one of ``TASKS``; drawn with ``TASK_PROBABILITIES`` when ``None``.

    Raises:
        UnknownNameError: for a task that does not exist.
    """
    if task is None:
        task = TASKS[rng.choice(len(TASKS), p=TASK_PROBABILITIES)]
    elif task not in TASKS:
        raise unknown("task", task, TASKS)
    first, second, third = (int(index) for index in rng.choice(len(CLASSES), 3, replace=False))
    relation: int | None = None
    groups: tuple[Group, ...]
    if task == "single_object":
        groups = (Group(1, first),)
    elif task == "colors":
        groups = (Group(1, first, _draw_color(rng)),)
    elif task == "two_object":
        groups = (Group(1, first), Group(1, second))
    elif task == "counting":
        groups = (Group(int(rng.integers(2, 5)), first),)
    elif task == "position":
        groups, relation = (Group(1, first), Group(1, second)), int(rng.integers(4))
    elif task == "color_attr":
        color = other = _draw_color(rng)
        while other == color:
            other = _draw_color(rng)
        groups = (Group(1, first, color), Group(1, second, other))
    else:
        groups, relation = _draw_complex(first, second, third, rng)
    return Scene(task, groups, relation, caption(groups, relation, rng))


def _draw_color(rng: np.random.Generator) -> int:
    return int(rng.integers(1, len(COLORS) + 1))


def _draw_complex(
    first: int, second: int, third: int, rng: np.random.Generator
) -> tuple[tuple[Group, ...], int | None]:
    """One of four mixtures: a relation with colours, a count and a single, three objects, a coloured count."""
    kind = rng.integers(4)
    if kind == 0:
        groups = (Group(1, first, _draw_color(rng)), Group(1, second, _draw_color(rng)))
        return groups, int(rng.integers(4))
    if kind == 1:
        count = int(rng.integers(2, 4))
        color = _draw_color(rng) if rng.random() < 0.5 else 0
        other = _draw_color(rng) if rng.random() < 0.5 else 0
        return (Group(count, first, color), Group(1, second, other)), None
    if kind == 2:
        return (Group(1, first), Group(1, second), Group(1, third)), None
    return (Group(int(rng.integers(2, 5)), first, _draw_color(rng)),), None


def caption(groups: Sequence[Group], relation: int | None, rng: np.random.Generator) -> str:
    """Writes a prompt for a scene; the wording (plural, "to the", "a photo of") is drawn from ``rng``."""
    phrases = [noun_phrase(group, plain=group.count > 1 and rng.random() >= 0.5) for group in groups]
    words = "" if relation is None else RELATIONS[relation]
    if relation is not None and relation < 2 and rng.random() < 0.2:
        words = "to the " + words
    body = joined(phrases, words)
    wording = rng.random()
    if wording < 0.8:
        return "a photo of " + body
    return "a picture of " + body if wording < 0.88 else body


def joined(phrases: Sequence[str], relation: str = "") -> str:
    """Two noun phrases in a relation, or a list of them."""
    if relation:
        return f"{phrases[0]} {relation} {phrases[1]}"
    return ", ".join([*phrases[:-2], " and ".join(phrases[-2:])])


def noun_phrase(group: Group, plain: bool = False) -> str:
    """A group in words: "two red cups"; ``plain`` is the plural with a bare "s" ("two knifes").

    >>> noun_phrase(Group(2, 38)), noun_phrase(Group(1, 44, 2))
    ('two knives', 'an orange orange')
    """
    adjective = f"{color_name(group.color)} " if group.color else ""
    if group.count == 1:
        words = adjective + group.name
        return ("an " if words[0] in "aeiou" else "a ") + words
    item = CLASSES[group.cls]
    return f"{NUMBERS[group.count]} {adjective}{item.plain_plural if plain else item.plural}"


# ------------------------------------------------------------------------------------------------ reading prompts

_LEADER = re.compile(r"^\s*(?:a\s+(?:photo|picture)\s+of\s+)?", re.IGNORECASE)
_RELATION = re.compile(r"\s+(?:to\s+the\s+)?(?P<side>left|right)\s+of\s+|\s+(?P<level>above|below)\s+", re.IGNORECASE)
_CONJUNCTION = re.compile(r"\s*,\s*and\s+|\s+and\s+|\s*,\s*", re.IGNORECASE)
_COUNTS = {"a": 1, "an": 1} | {word: count for count, word in enumerate(NUMBERS) if count}
_SINGULAR = {item.name: index for index, item in enumerate(CLASSES)}
_PLURAL = {word: index for index, item in enumerate(CLASSES) for word in (item.plural, item.plain_plural)}


def _read(text: str) -> tuple[tuple[str, ...], int | None]:
    """Splits a prompt into its noun phrases, with their spelling, and its relation."""
    body = _LEADER.sub("", text, count=1).strip().removesuffix(".").rstrip()
    if match := _RELATION.search(body):
        words = match["level"] or f"{match['side']} of"
        return (body[: match.start()], body[match.end() :]), RELATIONS.index(words.lower())
    return tuple(_CONJUNCTION.split(body)), None


def _read_group(phrase: str) -> Group | None:
    """Reads "two red cups"; ``None`` for anything else."""
    number, *words = phrase.lower().split() or [""]
    count = _COUNTS.get(number)
    if count is None or not words:
        return None
    nouns = _SINGULAR if count == 1 else _PLURAL
    # The whole phrase first: "an orange" is a fruit, "an orange orange" a coloured one.
    if (cls := nouns.get(" ".join(words))) is not None:
        return Group(count, cls)
    if words[0] in COLORS and (cls := nouns.get(" ".join(words[1:]))) is not None:
        return Group(count, cls, 1 + COLORS.index(words[0]))
    return None


def parse(text: str) -> Scene | None:
    """Parses a prompt of the grammar into its scene; case, spacing and a full stop are ignored.

    Returns:
        The scene, or ``None`` when the text does not match the grammar (an unknown word, too many objects ...).

    >>> parse("a photo of two red cups and a dog").groups
    (Group(count=2, cls=36, color=1), Group(count=1, cls=13, color=0))
    >>> parse("an oil painting of a dragon") is None
    True
    """
    phrases, relation = _read(text)
    groups = tuple(group for group in map(_read_group, phrases) if group is not None)
    if len(groups) < len(phrases) or contradiction(groups, relation):
        return None
    return Scene(task_of(groups, relation), groups, relation, text)


def scene_key(scene: Scene) -> str:
    """A key that two scenes share if and only if their prompts ask for the same images.

    It ignores wording and the order of a list, and a relation equals its converse: "a cat left of a dog" is "a
    dog to the right of a cat".

    >>> scene_key(parse("a dog right of a red cat"))
    '1 red cat | left of | 1 dog'
    """
    parts = [" ".join(filter(None, (str(g.count), color_name(g.color), g.name))) for g in scene.groups]
    if scene.relation is None:
        return " | ".join(sorted(parts))
    if scene.relation % 2:  # right of, below: use the converse
        parts.reverse()
    return f"{parts[0]} | {RELATIONS[scene.relation // 2 * 2]} | {parts[1]}"


def split_of(scene: Scene) -> Literal["train", "test"]:
    """The split of a scene: one fifth is test, by a stable hash of :func:`scene_key`."""
    return "test" if stable_hash("emoji split", scene_key(scene)) % 5 == 0 else "train"


def scene_prompt(scene: Scene) -> Prompt:
    """The :class:`Prompt` of a scene: its noun phrases, its constraints, and the scene itself as requirements."""
    phrases, _ = _read(scene.text)
    return Prompt(scene.text, text_id(scene.text, "emoji"), scene.task, phrases, scene.constraints, scene)


def emoji_prompt(text: str) -> Prompt:
    """A prompt for a user's text: with requirements if the grammar can parse it, otherwise without.

    >>> emoji_prompt("a red cup above a dog").phrases
    ('a red cup', 'a dog')
    >>> emoji_prompt("a dream").requirements is None
    True
    """
    scene = parse(text)
    return Prompt(text, text_id(text, "emoji")) if scene is None else scene_prompt(scene)


class EmojiPrompts:
    """A :class:`PromptSource` over the grammar.

    The splits divide the *policy's* training data; the diffusion model was trained on scenes of both.

    Args:
        split: ``"train"``, ``"test"`` or ``"all"``; train and test share no scene, regardless of wording.
        tasks: restricts to these of ``TASKS``, in their usual proportions; all when ``None``.

    Raises:
        UnknownNameError: for a split or task that does not exist.
        PromptError: for an empty list of tasks.
    """

    name = "emoji"

    def __init__(self, split: Split = "train", tasks: Sequence[str] | None = None) -> None:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        self.split = split
        self.tasks = TASKS if tasks is None else tuple(tasks)
        if not self.tasks:
            raise PromptError("the list of tasks is empty", f"name some of {', '.join(TASKS)}, or leave it out")
        for task in self.tasks:
            if task not in TASKS:
                raise unknown("task", task, TASKS)
        weights = np.array([TASK_PROBABILITIES[TASKS.index(task)] for task in self.tasks])
        self._probabilities = TASK_PROBABILITIES if self.tasks == TASKS else weights / weights.sum()

    def sample(self, rng: np.random.Generator) -> Prompt:
        """Draws one prompt of the split."""
        return scene_prompt(self._draw(self._draw_task(rng), rng))

    def take(self, count: int, seed: int = 0) -> list[Prompt]:
        """``count`` *distinct* prompts for ``seed``; a longer list starts with the shorter one.

        Raises:
            PromptError: when the split and tasks have fewer prompts.
        """
        rng = np.random.default_rng(seed)
        taken: dict[str, Prompt] = {}
        exhausted: set[str] = set()
        while len(taken) < count:
            if len(exhausted) == len(self.tasks):
                found = f"found {len(taken)} in split {self.split!r}, tasks {', '.join(self.tasks)}"
                raise PromptError(f"asked for {count} different prompts, {found}", "ask for fewer, or allow more tasks")
            task = self._draw_task(rng)
            if task in exhausted:
                continue
            # A repeat is redrawn within its task, so that small tasks keep their share as long as possible.
            for _ in range(_PATIENCE):
                scene = self._draw(task, rng)
                if scene.text not in taken:
                    taken[scene.text] = scene_prompt(scene)
                    break
            else:
                exhausted.add(task)
        return list(taken.values())

    def _draw_task(self, rng: np.random.Generator) -> str:
        return self.tasks[rng.choice(len(self.tasks), p=self._probabilities)]

    def _draw(self, task: str, rng: np.random.Generator) -> Scene:
        while True:
            scene = sample_scene(rng, task)
            if self.split in ("all", split_of(scene)):
                return scene

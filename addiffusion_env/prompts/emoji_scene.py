"""What a prompt of the emoji world asks for, exactly: the machine-readable form that a rule can judge by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from addiffusion_env.errors import PromptError, unknown
from addiffusion_env.prompts.emoji_vocabulary import CLASSES, COLORS, MAX_OBJECTS, RELATIONS, TASKS


@dataclass(frozen=True)
class Group:
    """Objects of one class and colour that a prompt asks for.

    Attributes:
        count: how many, 1 to 4.
        cls: index into ``CLASSES``.
        color: 0 when the prompt does not say, else ``1 +`` the index into ``COLORS``.
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
    """What a prompt asks for, exactly.

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
            raise PromptError(f"no such scene {self.text!r}: {problem}", "see Scene for what a scene may hold")
        if self.task not in TASKS:
            raise unknown("task", self.task, TASKS)

    @property
    def object_count(self) -> int:
        """How many objects the picture should show."""
        return sum(group.count for group in self.groups)

    @property
    def demands(self) -> int:
        """Separate things asked for: one a class, a colour, a count above one, a relation."""
        extras = sum((group.color > 0) + (group.count > 1) for group in self.groups)
        return len(self.groups) + extras + (self.relation is not None)


def contradiction(groups: Sequence[Group], relation: int | None) -> str:
    """Why these groups and relation are no scene; empty when they are one."""
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
    """The task that a scene of these groups and relation belongs to."""
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

"""Benchmark prompts in the emoji world: the scene of a prompt, in words of the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from addiffusion_env.prompts import Prompt
from addiffusion_env.prompts.emoji_grammar import (
    Group,
    Scene,
    contradiction,
    joined,
    noun_phrase,
    parse,
    scene_prompt,
    task_of,
)
from addiffusion_env.prompts.emoji_vocabulary import RELATIONS

MAX_READABLE = 200
"""Maximum length of a prompt of the grammar; protects its regular expressions from hostile texts."""


def readable_scene(text: str) -> Scene | None:
    """The scene of a text in the grammar's form, or ``None``."""
    return parse(text) if len(text) <= MAX_READABLE else None


def make_scene(groups: Sequence[Group], relation: int | None, text: str) -> Scene | None:
    """The scene of these groups, worded as ``text`` if that parses to it, otherwise by the grammar.

    Returns:
        The scene, or ``None`` when it does not exist in the emoji world (too many objects, one class twice ...).
    """
    groups = tuple(groups)
    if contradiction(groups, relation):
        return None
    read = readable_scene(text)
    if read is not None and (read.groups, read.relation) == (groups, relation):
        return read
    return Scene(task_of(groups, relation), groups, relation, wording(groups, relation))


def wording(groups: Sequence[Group], relation: int | None) -> str:
    """The simplest prompt for groups and a relation.

    >>> wording([Group(2, 38), Group(1, 16, 4)], None)
    'a photo of two knives and a green cow'
    """
    words = "" if relation is None else RELATIONS[relation]
    return "a photo of " + joined([noun_phrase(group) for group in groups], words)


def to_emoji(prompt: Prompt, scene: Scene | None) -> Prompt | None:
    """Converts a benchmark's prompt to the emoji world: same id and task, the scene's text and requirements.

    The published text is kept in ``metadata["original"]``.

    Returns:
        The prompt, or ``None`` without a scene.
    """
    if scene is None:
        return None
    told = scene_prompt(scene)
    return Prompt(
        told.text,
        prompt.prompt_id,
        prompt.task,
        told.phrases,
        told.constraints,
        scene,
        {"original": prompt.text, **prompt.metadata},
    )

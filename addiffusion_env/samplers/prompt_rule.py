"""A rule based on the prompt alone: more steps where it names a colour. A policy that sees previews must beat it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.episode import play
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.prompts import Prompt
from addiffusion_env.prompts.emoji_grammar import Scene, parse
from addiffusion_env.prompts.emoji_vocabulary import COLORS
from addiffusion_env.samplers.base import BaseSampler, EpisodeCoroutine, fixed_schedule, require_at_least

_COLOUR = re.compile(rf"\b({'|'.join(COLORS)})\b", re.IGNORECASE)


def names_colour(prompt: Prompt) -> bool:
    """Whether a prompt asks for a colour. Uses the scene where there is one: "an orange" is a fruit.

    >>> names_colour(Prompt.of("a photo of an orange")), names_colour(Prompt.of("a photo of an orange car"))
    (False, True)
    """
    scene = prompt.requirements if isinstance(prompt.requirements, Scene) else parse(prompt.text)
    if scene is not None:
        return any(group.color for group in scene.groups)
    return _COLOUR.search(prompt.text) is not None


@dataclass(frozen=True)
class PromptRule(BaseSampler):
    """A fixed schedule with one length for prompts with a colour word and another for the rest.

    Attributes:
        coloured: steps with a colour word.
        plain: steps without.
    """

    coloured: int
    plain: int

    usage: ClassVar[str] = "prompt_rule:STEPS_WITH_COLOUR,STEPS_WITHOUT"
    example: ClassVar[tuple[str, str]] = ("emoji", "prompt_rule:3,2")

    def __post_init__(self) -> None:
        require_at_least("prompt_rule", "STEPS", min(self.coloured, self.plain), 1)

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The schedule of coloured prompts; :meth:`coroutine` shortens it for the others."""
        return fixed_schedule(base, self.coloured)

    def coroutine(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> EpisodeCoroutine:
        """One episode on the schedule that the rule assigns to the prompt."""
        steps = self.coloured if names_colour(prompt) else self.plain
        return play(backbone, replace(process, steps=steps), prompt, seed, looks=False)

"""What visitors type: refused with a message when it cannot be drawn, and told what can be."""

from __future__ import annotations

import unicodedata

from addiffusion_env.backbones import Traits
from addiffusion_env.errors import PromptError
from addiffusion_env.prompts import Prompt
from addiffusion_env.registry import load_object

MOST_CHARACTERS = 400
"""Longer texts are refused before anything reads them."""


class Guide:
    """What the page says of a model's world; a backbone's traits name another one."""

    examples: tuple[str, ...] = ("a photo of a dog", "two red cups left of a blue clock", "an astronaut riding a horse")

    @staticmethod
    def advice(prompt: Prompt) -> str:
        """What to tell a visitor of a prompt that the model may misread; empty where there is nothing to say."""
        return ""

    @staticmethod
    def vocabulary() -> str:
        """Everything that can be drawn, as HTML; empty where that is no list."""
        return ""


def guide_of(traits: Traits) -> Guide:
    """The guide that a backbone's traits name, or the plain one."""
    guide: Guide = Guide() if traits.guide is None else load_object(traits.guide)()
    return guide


# Overrides of the reading direction: they make a text look like another one.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def read_prompt(text: str | None, traits: Traits) -> Prompt:
    """A visitor's text as a prompt; line breaks and runs of spaces become one space.

    Args:
        text: as typed.
        traits: of the model that will draw it: some read a grammar of their own.

    Raises:
        PromptError: for an empty text, one that is too long, or one with control characters.
    """
    typed = text or ""
    if len(typed) > MOST_CHARACTERS:
        raise PromptError(
            f"The prompt has {len(typed):,} characters; up to {MOST_CHARACTERS} are read here.", "Shorten it."
        )
    words = " ".join(typed.split())
    if not words:
        raise PromptError("There is no prompt.", "Write one, or click an example.")
    for character in words:
        if unicodedata.category(character) in ("Cc", "Cs") or character in _BIDI:
            raise PromptError(
                f"The prompt holds the control character U+{ord(character):04X}.", "Type it again as plain text."
            )
    return traits.read_prompt(words)

"""Validation of user prompts, with messages about what can be drawn."""

from __future__ import annotations

import unicodedata

from addiffusion_env.backbones import Traits
from addiffusion_env.errors import PromptError
from addiffusion_env.prompts import Prompt
from addiffusion_env.registry import load_object

MOST_CHARACTERS = 400
"""Maximum length of a text; longer ones are refused immediately."""


class Guide:
    """Help texts about a model's world; a backbone's traits may name another class."""

    examples: tuple[str, ...] = ("a photo of a dog", "two red cups left of a blue clock", "an astronaut riding a horse")

    @staticmethod
    def advice(prompt: Prompt) -> str:
        """A note about a prompt that the model may misread; empty if there is none."""
        return ""

    @staticmethod
    def vocabulary() -> str:
        """Everything that can be drawn, as HTML; empty if it is not a list."""
        return ""


def guide_of(traits: Traits) -> Guide:
    """The guide named in a backbone's traits, or the default one."""
    guide: Guide = Guide() if traits.guide is None else load_object(traits.guide)()
    return guide


# Overrides of the text direction: they can disguise a text.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def read_prompt(text: str | None, traits: Traits) -> Prompt:
    """A visitor's text as a prompt; line breaks and runs of spaces become one space.

    Args:
        text: the text as typed.
        traits: traits of the model; some have their own grammar.

    Raises:
        PromptError: for an empty text, one that is too long, or one with control characters.
    """
    typed = text or ""
    if len(typed) > MOST_CHARACTERS:
        raise PromptError(f"The prompt has {len(typed):,} characters; the maximum is {MOST_CHARACTERS}.", "Shorten it.")
    words = " ".join(typed.split())
    if not words:
        raise PromptError("There is no prompt.", "Write one, or click an example.")
    for character in words:
        if unicodedata.category(character) in ("Cc", "Cs") or character in _BIDI:
            raise PromptError(
                f"The prompt contains the control character U+{ord(character):04X}.", "Type it again as plain text."
            )
    return traits.read_prompt(words)

"""What visitors type: refused with a message when it cannot be drawn, and told what can be."""

from __future__ import annotations

import re
import unicodedata

from addiffusion_env.errors import PromptError
from addiffusion_env.prompts.base import Prompt
from addiffusion_env.prompts.emoji_grammar import emoji_prompt
from addiffusion_env.prompts.emoji_vocabulary import vocabulary_words

MOST_CHARACTERS = 400
"""Longer texts are refused before anything reads them."""

EMOJI_EXAMPLES = (
    "a photo of a dog",
    "a photo of an elephant left of a giraffe",
    "a photo of three bananas",
    "a photo of a red cup and a blue clock",
)
OTHER_EXAMPLES = ("a photo of a dog", "two red cups left of a blue clock", "an astronaut riding a horse")

# Overrides of the reading direction: they make a text look like another one.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def read_prompt(text: str | None, backbone: str) -> Prompt:
    """A visitor's text as a prompt; line breaks and runs of spaces become one space.

    Args:
        text: as typed.
        backbone: name of the model that will draw it; the emoji world reads its own grammar.

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
    return emoji_prompt(words) if backbone == "emoji" else Prompt.of(words)


def advice(prompt: Prompt, backbone: str) -> str:
    """What to tell a visitor whose prompt the emoji world cannot wholly read; empty where there is nothing to say.

    >>> advice(read_prompt("a photo of a dragon", "emoji"), "emoji")
    'The emoji world does not know "dragon". It draws something, but nothing can judge it.'
    >>> advice(read_prompt("a photo of a dog", "emoji"), "emoji")
    ''
    """
    if backbone != "emoji" or prompt.requirements is not None:
        return ""
    strange = unknown_words(prompt.text)
    if strange:
        named = ", ".join(f'"{word}"' for word in strange[:5]) + (" ..." if len(strange) > 5 else "")
        return f"The emoji world does not know {named}. It draws something, but nothing can judge it."
    return (
        "Every word is known, but not the sentence: up to three groups of one to four objects, joined by "
        '"and", or two single ones by "left of", "right of", "above" or "below". It is drawn, and not judged.'
    )


def unknown_words(text: str) -> list[str]:
    """The words of a text that the emoji world's grammar never writes, in order, each once and cut to 24 letters.

    >>> unknown_words("A dog and a Dragon's dragon")
    ['dragon']
    """
    known = {*vocabulary_words(), "s"}
    words = re.findall(r"[^\W_]+", text.lower())
    return list(dict.fromkeys(word[:24] for word in words if word not in known))

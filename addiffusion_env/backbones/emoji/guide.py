"""The demo's help for the emoji world: example prompts, advice on unsupported prompts, and the vocabulary."""

from __future__ import annotations

import re
from html import escape

from addiffusion_env.prompts import Prompt
from addiffusion_env.prompts.emoji_vocabulary import CLASSES, COLORS, NUMBERS, RELATIONS, vocabulary_words


class EmojiGuide:
    """The demo's :class:`addiffusion_lab.demo.prompts.Guide` to the emoji world."""

    examples = (
        "a photo of a dog",
        "a photo of an elephant left of a giraffe",
        "a photo of three bananas",
        "a photo of a red cup and a blue clock",
    )

    @staticmethod
    def advice(prompt: Prompt) -> str:
        """Advice for a prompt that is not fully understood; empty if it is.

        >>> from addiffusion_env.prompts.emoji_grammar import emoji_prompt
        >>> EmojiGuide.advice(emoji_prompt("a photo of a dragon"))
        'The emoji world does not know "dragon". It draws something, but nothing can judge it.'
        >>> EmojiGuide.advice(emoji_prompt("a photo of a dog"))
        ''
        """
        if prompt.requirements is not None:
            return ""
        strange = unknown_words(prompt.text)
        if strange:
            named = ", ".join(f'"{word}"' for word in strange[:5]) + (" ..." if len(strange) > 5 else "")
            return f"The emoji world does not know {named}. It draws something, but nothing can judge it."
        return (
            "Every word is known, but not the sentence: up to three groups of one to four objects, joined by "
            '"and", or two single ones by "left of", "right of", "above" or "below". It is drawn, and not judged.'
        )

    @staticmethod
    def vocabulary() -> str:
        """The vocabulary of the emoji world, as HTML."""
        things = " ".join(f"<span>{escape(item.name)}</span>" for item in CLASSES)
        colours = " ".join(f'<span><i style="background:{name}"></i> {name}</span>' for name in COLORS)
        return (
            f'<div class="ad-words"><p>Up to three groups of one to four ({", ".join(NUMBERS[1:])}) things, joined by '
            f'"and"; or two single things, one {", ".join(RELATIONS)} the other. Each may have a colour.</p>'
            f"<p>{colours}</p><p>{things}</p></div>"
        )


def unknown_words(text: str) -> list[str]:
    """The words of a text outside the emoji world's grammar, in order, each once and cut to 24 letters.

    >>> unknown_words("A dog and a Dragon's dragon")
    ['dragon']
    """
    known = {*vocabulary_words(), "s"}
    words = re.findall(r"[^\W_]+", text.lower())
    return list(dict.fromkeys(word[:24] for word in words if word not in known))

"""The judge's question, and parsing of its reply."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Literal, TypeAlias

from addiffusion_lab.vlm.client import Part

Vote: TypeAlias = Literal["first", "second", "tie", "unparsed"]
"""Vote of one reply on the image shown first and the one shown second."""

OPENING = (
    "You will see two images that were made for the same text prompt. Compare how well each shows what the prompt asks "
    "for: every object, how many there are, their colours and where they are; and then how clean it is, without "
    "artefacts. Neither the order in which the images are shown nor their labels say anything about their quality."
)
CLOSING = (
    "Which image is better? Explain in one or two sentences. Then end with exactly one line, one of these three:\n"
    "VERDICT: FIRST\nVERDICT: SECOND\nVERDICT: TIE"
)

# Reasoning text that a server did not remove: closed, opened in the prompt, or truncated.
_THINKING = re.compile(
    r"<(think|thinking)>.*?</\1>|\A(?:(?!<think).)*?</think(?:ing)?>|<think(?:ing)?>.*\Z", re.IGNORECASE | re.DOTALL
)
_VERDICT = re.compile(r"VERDICT\W*(FIRST|SECOND|TIE)\b", re.IGNORECASE)


def question(prompt: str, first: bytes, second: bytes) -> tuple[Part, ...]:
    """The parts of one request: neutral labels, no sampler's name, images as PNG files."""
    # JSON quotes the prompt, so that quotes or line breaks in it cannot change the question.
    asked = f"The prompt: {json.dumps(prompt, ensure_ascii=False)}"
    return (f"{OPENING}\n\n{asked}\n\nFirst image:", first, "Second image:", second, CLOSING)


def template_digest() -> str:
    """12 hex digits that change with the wording; verdicts under other wordings are not comparable."""
    return hashlib.sha256(f"{OPENING}\x1f{CLOSING}".encode()).hexdigest()[:12]


def read_vote(text: str) -> Vote:
    r"""The verdict of a reply; ``unparsed`` when there is none, or when there are several that disagree.

    Text within ``<think>`` tags is ignored.

    >>> read_vote("Both show a dog.\n**Verdict:** FIRST"), read_vote("VERDICT: TIE"), read_vote("The first one.")
    ('first', 'tie', 'unparsed')
    """
    found = {word.lower() for word in _VERDICT.findall(_THINKING.sub("", text))}
    for vote in ("first", "second", "tie"):
        if found == {vote}:
            return vote  # type: ignore[return-value]
    return "unparsed"

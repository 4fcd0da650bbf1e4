"""The services that a judge can run on, and their differences. All of them use OpenAI's protocol."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Service:
    """A provider of vision-language models.

    Attributes:
        name: in specs, results and cache keys.
        summary: one line about it.
        home: base URL of its OpenAI-compatible endpoint.
        example: a pinned model.
        key_variables: environment variables that may hold the key; the first one that is set is used.
        is_pinned: whether the service promises that a model's name always refers to the same weights.
        image_tokens: (width, height) -> input tokens of an image, for estimates.
        max_output_tokens: default of the longest reply, reasoning included.
    """

    name: str
    summary: str
    home: str
    example: str
    key_variables: tuple[str, ...]
    is_pinned: Callable[[str], bool]
    image_tokens: Callable[[int, int], int]
    max_output_tokens: int


def openai_tokens(width: int, height: int) -> int:
    """85 and 170 per tile of 512 pixels, after fitting into 2048 and the shorter side into 768 (GPT-4o, GPT-4.1).

    Small variants of these models count more for the same image: set a higher price for them.

    >>> openai_tokens(64, 64), openai_tokens(1024, 1024)
    (255, 765)
    """
    scale = min(1.0, 2048 / max(width, height))
    scale = min(scale, 768 / min(width, height))
    return 85 + 170 * math.ceil(width * scale / 512) * math.ceil(height * scale / 512)


def gemini_tokens(width: int, height: int) -> int:
    """258 when both sides are at most 384 pixels, else 258 per tile of 768 (or of 2/3 of the shorter side, if less).

    Recent models may count differently; the booked cost follows the reported tokens.

    >>> gemini_tokens(64, 64), gemini_tokens(1024, 1024)
    (258, 1032)
    """
    if max(width, height) <= 384:
        return 258
    tile = min(768, max(256, math.floor(min(width, height) / 1.5)))
    return 258 * math.ceil(width / tile) * math.ceil(height / tile)


SERVICES: Mapping[str, Service] = {
    service.name: service
    for service in (
        Service(
            name="openai",
            summary="OpenAI, and with base_url any compatible server (vLLM, Ollama, llama.cpp, gateways)",
            home="https://api.openai.com/v1",
            example="gpt-4o-2024-11-20",
            key_variables=("OPENAI_API_KEY",),
            # Snapshots end in a date; gpt-4o and chatgpt-4o-latest change over time.
            is_pinned=lambda model: re.fullmatch(r".+-\d{4}-\d{2}-\d{2}", model) is not None,
            image_tokens=openai_tokens,
            max_output_tokens=1024,
        ),
        Service(
            name="gemini",
            summary="Google's Gemini through its OpenAI-compatible endpoint",
            home="https://generativelanguage.googleapis.com/v1beta/openai/",
            example="gemini-2.5-flash",
            key_variables=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
            # Stable names are fixed; those with latest or exp change over time.
            is_pinned=lambda model: re.search(r"latest|-exp(-|$)", model) is None,
            image_tokens=gemini_tokens,
            max_output_tokens=4096,  # its models reason by default, which counts as output
        ),
    )
}
"""Name -> service."""

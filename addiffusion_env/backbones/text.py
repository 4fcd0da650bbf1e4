"""Tokenises prompts: checks the window's limit and finds the content tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from addiffusion_env.errors import PromptError

# Words that name nothing to draw: the attention map of "of" does not locate anything.
_WORDS = "a an the of and or to with in on at by for from is are photo picture image painting drawing , . ; : ! ?"
STOP_WORDS = frozenset(_WORDS.split())


def tokenize(tokenizer: Any, prompts: list[str], max_tokens: int, truncate: bool = False) -> Tensor:
    """Token ids (B, max_tokens), padded.

    Raises:
        PromptError: when a prompt does not fit and ``truncate`` is off.
    """
    rows = tokenizer(prompts, padding="max_length", max_length=max_tokens, truncation=truncate).input_ids
    check_lengths(prompts, map(len, rows), max_tokens)
    return torch.tensor(rows)


def check_lengths(prompts: Iterable[str], lengths: Iterable[int], limit: int) -> None:
    """Refuses prompts of more than ``limit`` tokens.

    Raises:
        PromptError: with the first such prompt's length.
    """
    for prompt, length in zip(prompts, lengths, strict=True):
        if length > limit:
            raise PromptError(
                f"prompt of {length} tokens, the text window holds {limit} (special tokens included): {prompt[:60]!r}",
                "shorten it, or set the backbone option truncate_prompts=true to drop its end",
            )


def expanded(pipe: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Prompts in which the pipeline has replaced each textual inversion by one token for each of its vectors."""
    added = set(tokenizer.added_tokens_encoder) - set(tokenizer.all_special_tokens)
    if added and hasattr(pipe, "maybe_convert_prompt"):
        return [pipe.maybe_convert_prompt(prompt, tokenizer) for prompt in prompts]
    return list(prompts)


def content_positions(tokenizer: Any, ids: Tensor) -> tuple[tuple[int, ...], ...]:
    """For each row of ids (B, tokens), the positions of its content tokens: no special tokens, no stop words."""
    rows = ids.tolist()
    known = list({token for row in rows for token in row} - set(tokenizer.all_special_ids))
    words = (str(name).replace("</w>", "").strip("Ġ▁ ").lower() for name in tokenizer.convert_ids_to_tokens(known))
    content = {token for token, word in zip(known, words, strict=True) if word not in STOP_WORDS}
    return tuple(tuple(place for place, token in enumerate(row) if token in content) for row in rows)

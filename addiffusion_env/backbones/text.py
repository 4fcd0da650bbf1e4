"""Tokenises prompts: checks the window's limit and finds the content tokens."""

from __future__ import annotations

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
    for prompt, ids in zip(prompts, rows, strict=True):
        if len(ids) > max_tokens:
            raise PromptError(
                f"prompt of {len(ids)} tokens, the text window holds {max_tokens} (special tokens included): "
                f"{prompt[:60]!r}",
                "shorten it, or set truncate_prompts=true to drop its end",
            )
    return torch.tensor(rows)


def content_positions(tokenizer: Any, ids: Tensor) -> tuple[tuple[int, ...], ...]:
    """For each row of ids (B, tokens), the positions of its content tokens: no special tokens, no stop words."""
    rows = ids.tolist()
    known = list({token for row in rows for token in row} - set(tokenizer.all_special_ids))
    words = (str(name).replace("</w>", "").strip("Ġ▁ ").lower() for name in tokenizer.convert_ids_to_tokens(known))
    content = {token for token, word in zip(known, words, strict=True) if word not in STOP_WORDS}
    return tuple(tuple(place for place, token in enumerate(row) if token in content) for row in rows)

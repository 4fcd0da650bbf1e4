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
    if not truncate:
        for prompt, ids in zip(prompts, tokenizer(prompts).input_ids, strict=True):
            if len(ids) > max_tokens:
                raise PromptError(
                    f"prompt of {len(ids)} tokens, the text window holds {max_tokens} (special tokens included): "
                    f"{prompt[:60]!r}",
                    "shorten it, or set truncate_prompts=true to drop its end",
                )
    batch = tokenizer(prompts, padding="max_length", max_length=max_tokens, truncation=True, return_tensors="pt")
    return torch.as_tensor(batch.input_ids)


def content_positions(tokenizer: Any, ids: Tensor) -> tuple[tuple[int, ...], ...]:
    """For each row of ids (B, tokens), the positions of its content tokens: no special tokens, no stop words."""
    special = set(tokenizer.all_special_ids)
    rows = []
    for row in ids.tolist():
        tokens = tokenizer.convert_ids_to_tokens(row)
        words = [str(token).replace("</w>", "").strip("Ġ▁ ").lower() for token in tokens]
        rows.append(
            tuple(
                i for i, (t, w) in enumerate(zip(row, words, strict=True)) if t not in special and w not in STOP_WORDS
            )
        )
    return tuple(rows)

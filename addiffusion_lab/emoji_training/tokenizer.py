"""Stage tokenizer: CLIP's byte-pair encoding, learned on the grammar's words, so that each is one token."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from addiffusion_env.prompts.emoji_vocabulary import vocabulary_words
from addiffusion_lab.emoji_training.config import TrainConfig, TrainReport
from addiffusion_lab.emoji_training.data import MAX_TOKENS

START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
_FIRST_ENDINGS = "sedrtn"


def _byte_characters() -> list[str]:
    """The 256 printable characters that represent bytes in GPT-2's byte-level encoding, in its order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(code) for code in printable] + [chr(256 + index) for index in range(256 - len(printable))]


def learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Merges the most frequent pair of neighbours until every word is one token.

    In plain Python because the ``tokenizers`` trainer breaks some ties at random, and a token's id is part of the
    weights. Ties are broken in favour of older tokens, as there; word-final letters have the same age as in the shipped
    tokenizer.
    """
    spellings = [[*word[:-1], word[-1] + _WORD_END] for word in words]
    letters = _byte_characters()
    endings = [letter + _WORD_END for letter in dict.fromkeys([*_FIRST_ENDINGS, *letters])]
    age = {token: index for index, token in enumerate([*sorted(letters), *endings])}
    merges = []
    while counts := Counter(pair for spelling in spellings for pair in pairwise(spelling)):
        pair = min(counts, key=lambda item: (-counts[item], age[item[0]], age[item[1]]))
        merges.append(pair)
        age.setdefault(pair[0] + pair[1], len(age))
        spellings = [_merge(spelling, pair) for spelling in spellings]
    return merges


def _merge(spelling: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for token in spelling:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged


def vocabulary_of(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Token -> id, in CLIP's order: bytes, bytes that end a word, merges, start, end."""
    alphabet = _byte_characters()
    tokens = [*alphabet, *(character + _WORD_END for character in alphabet)]
    tokens += [left + right for left, right in merges]
    return {token: index for index, token in enumerate(dict.fromkeys([*tokens, START, END]))}


def train_tokenizer(config: TrainConfig) -> TrainReport:
    """Writes ``tokenizer/``; ``loss`` is the share of the grammar's words that take more than one token."""
    words = vocabulary_words()
    merges = learn_merges(words)
    vocabulary = vocabulary_of(merges)
    with tempfile.TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab_file.write_text(json.dumps(vocabulary), encoding="utf-8")
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
        merges_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        tokenizer = CLIPTokenizer(str(vocab_file), str(merges_file), model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(config.out / "tokenizer")
    split = sum(len(tokenizer(word).input_ids) != 3 for word in words) / len(words)
    return TrainReport(config.out / "tokenizer", 1, split, {"vocabulary": len(vocabulary)})

"""Texts to token ids, for every text encoder here: cached, cut to the model's length with the end token kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from addiffusion_env.errors import WeightsError
from addiffusion_env.scorers.batching import LruCache

REMEMBERED = 8192


class Tokenizer:
    """Maps texts to ids of fixed or of trimmed length.

    A text that is too long keeps its first ``length - 1`` ids and its last, the end token, as open_clip and
    transformers do: pooled features are read at the end token, so slicing it off (torchmetrics) spoils the score.

    Args:
        encode: one text -> all its ids, start and end token included, not cut.
        length: how many ids the model reads.
        pad_id: fills up shorter texts.

    Attributes:
        encode: see above.
        length: see above.
        pad_id: see above.
    """

    not_identity = ("_known", "_warned")

    def __init__(self, encode: Callable[[str], list[int]], length: int, pad_id: int) -> None:
        self.encode = encode
        self.length = length
        self.pad_id = pad_id
        self._known: LruCache[list[int]] = LruCache(REMEMBERED)
        self._warned = False

    def ids(self, text: str) -> list[int]:
        """The ids of one text, at most ``length`` of them, not padded."""
        known = self._known.get(text)
        if known is None:
            known = self._cut(self.encode(text), text)
            self._known[text] = known
        return known

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Returns (B, length) int64 ids, padded."""
        return self._stack([self.ids(text) for text in texts], self.length)

    def trimmed(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids padded only to the longest text of the batch, for encoders that mask padding.

        Returns:
            ids: (B, T) int64 with T <= ``length``.
            mask: (B, T) int64, 1 for a token of the text, 0 for padding.
        """
        rows = [self.ids(text) for text in texts]
        longest = max(map(len, rows))
        lengths = torch.tensor([len(row) for row in rows])
        return self._stack(rows, longest), (torch.arange(longest) < lengths[:, None]).long()

    def _stack(self, rows: Sequence[list[int]], width: int) -> torch.Tensor:
        return torch.tensor([row + [self.pad_id] * (width - len(row)) for row in rows], dtype=torch.long)

    def _cut(self, ids: list[int], text: str) -> list[int]:
        if len(ids) <= self.length:
            return ids
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"a scorer reads {self.length} tokens and {text[:60]!r}... has {len(ids)}: the rest is cut; "
                "said once for all such texts",
                UserWarning,
                stacklevel=4,
            )
        return [*ids[: self.length - 1], ids[-1]]


def wrap_transformers(tokenizer: Any, length: int) -> Tokenizer:
    """Wraps a transformers tokenizer with a padding token."""

    def encode(text: str) -> list[int]:
        # verbose=False: transformers would log about long texts, which are ours to cut and to warn about.
        return list(tokenizer(text, truncation=False, verbose=False).input_ids)

    return Tokenizer(encode, length, int(tokenizer.pad_token_id))


def wrap_open_clip(tokenizer: Any, length: int) -> Tokenizer:
    """Wraps a tokenizer of ``open_clip.get_tokenizer``."""
    if hasattr(tokenizer, "sot_token_id") and getattr(tokenizer, "reduction_fn", None) is None:
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
        return Tokenizer(lambda text: [start, *tokenizer.encode(text), end], length, 0)
    # Others (SigLIP's, multilingual ones) pad and cut in their own way, which the model was trained with.
    return Tokenizer(lambda text: tokenizer([text], context_length=length)[0].tolist(), length, 0)


def has_tokenizer(folder: Path) -> bool:
    """Whether ``folder`` holds a transformers tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt"))


def load_transformers_tokenizer(folder: Path, tokenizer_class: Any = None) -> Any:
    """Loads the transformers tokenizer of a local folder; ``tokenizer_class`` where its files do not name one.

    Raises:
        WeightsError: when there is none, or it is broken.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        raise WeightsError(f"{folder} holds no tokenizer.json, vocab.json or vocab.txt", "point to a tokenizer folder")
    try:
        return (tokenizer_class or AutoTokenizer).from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise WeightsError(f"cannot load the tokenizer in {folder}: {error}", "save it again") from error


def beside_or_inside(folder: Path) -> Path | None:
    """The tokenizer folder of a model folder: itself, or ``../tokenizer`` as diffusers pipelines lay it out."""
    return next((place for place in (folder, folder.parent / "tokenizer") if has_tokenizer(place)), None)

"""Texts to token ids, for every text encoder here: cached, cut to the model's length with the end token kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from addiffusion_env.errors import WeightsError
from addiffusion_env.scorers.batching import LruCache

REMEMBERED = 8192
OPEN_CLIP_VOCABULARY = 49408  # of the tokenizer that comes with open_clip, OpenAI's


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
        self.warn_of_cut(text, len(ids))
        return [*ids[: self.length - 1], ids[-1]]

    def warn_of_cut(self, text: str, count: int) -> None:
        """Says once that a text of ``count`` tokens is longer than what the model reads."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"a scorer reads {self.length} tokens and {text[:60]!r}... has {count}: the rest is cut; "
                "said once for all such texts",
                UserWarning,
                stacklevel=5,
            )


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

    def encode(text: str) -> list[int]:
        # SigLIP's, multilingual ones and others pad and cut in their own way, which the model was trained with.
        if hasattr(tokenizer, "tokenizer"):
            cleaned = getattr(tokenizer, "clean_fn", str)(text)
            if (count := len(tokenizer.tokenizer(cleaned, verbose=False).input_ids)) > length:
                wrapped.warn_of_cut(text, count)
        return tokenizer([text], context_length=length)[0].tolist()

    wrapped = Tokenizer(encode, length, 0)
    return wrapped


def has_tokenizer(folder: Path) -> bool:
    """Whether ``folder`` holds a transformers tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt"))


def require_tokenizer(folder: Path) -> Path:
    """Returns ``folder`` when it holds a transformers tokenizer.

    Raises:
        WeightsError: when it does not.
    """
    if not has_tokenizer(folder):
        raise WeightsError(f"{folder} holds no tokenizer.json, vocab.json or vocab.txt", "point to a tokenizer folder")
    return folder


def load_transformers_tokenizer(folder: Path, tokenizer_class: Any = None) -> Any:
    """Loads the transformers tokenizer of a local folder; ``tokenizer_class`` where its files do not name one.

    Raises:
        WeightsError: when there is none, or it is broken.
    """
    from transformers import AutoTokenizer

    require_tokenizer(folder)
    try:
        return (tokenizer_class or AutoTokenizer).from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise WeightsError(f"cannot load the tokenizer in {folder}: {error}", "save it again") from error


def beside_or_inside(folder: Path) -> Path | None:
    """The tokenizer folder of a model folder: itself, or ``../tokenizer`` as diffusers pipelines lay it out."""
    return next((place for place in (folder, folder.parent / "tokenizer") if has_tokenizer(place)), None)


def choose_tokenizer(
    given: str | Path | Tokenizer | None, config: Mapping[str, Any], folder: Path | None, name: str = ""
) -> Tokenizer:
    """The tokenizer of a model, as ``open_clip.get_tokenizer`` chooses it.

    A config that names a transformers tokenizer (``hf_tokenizer_name``) gets it with ``tokenizer_kwargs``, which say
    how texts are cleaned: for a folder from its files or ``../tokenizer``, for a name from the hub. Other configs get
    open_clip's own tokenizer, whatever tokenizer files lie in the folder: its cleaning (ftfy, HTML entities) is what
    the model was trained with. Only a model with another vocabulary than that tokenizer's, which open_clip could not
    serve, gets the folder's tokenizer as it is; the emoji world's is one.

    Args:
        given: a tokenizer, or a folder with a transformers tokenizer, in place of the above.
        config: the model config.
        folder: the model's, or
        name: open_clip's name of it.

    Raises:
        WeightsError: when there is no tokenizer, or it is broken.
    """
    import open_clip
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

    if isinstance(given, Tokenizer):
        return given
    text = config.get("text_cfg", {})
    length = int(text.get("context_length", DEFAULT_CONTEXT_LENGTH))
    settings = text.get("tokenizer_kwargs", {})
    named = text.get("hf_tokenizer_name", "")
    own = not named and int(text.get("vocab_size", OPEN_CLIP_VOCABULARY)) == OPEN_CLIP_VOCABULARY
    if given is None and name:
        return wrap_open_clip(open_clip.get_tokenizer(name), length)
    if given is None and own:
        return wrap_open_clip(make_tokenizer(SimpleTokenizer, context_length=length, **settings), length)
    place = Path(given).expanduser() if given is not None else folder and beside_or_inside(folder)
    if place is None:
        wanted = f"its config names {named}" if named else f"its vocabulary of {text['vocab_size']} is its own"
        raise WeightsError(
            f"no tokenizer in {folder} or beside it, and {wanted}", "save the tokenizer there, or pass tokenizer=FOLDER"
        )
    if not named:
        return wrap_transformers(load_transformers_tokenizer(place), length)
    settings = {"tokenizer_mode": text.get("tokenizer_mode"), **settings}
    return wrap_open_clip(
        make_tokenizer(HFTokenizer, require_tokenizer(place), context_length=length, **settings), length
    )


def make_tokenizer(kind: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """One of open_clip's tokenizers.

    Raises:
        WeightsError: when its files are broken, or it does not know one of ``settings``, a config's
            ``tokenizer_kwargs``.
    """
    try:
        return kind(*args, **settings)
    except Exception as error:
        raise WeightsError(
            f"open_clip's {kind.__name__} cannot be made with {settings}: {type(error).__name__}: {error}",
            "check the tokenizer's files, and tokenizer_kwargs in open_clip_config.json",
        ) from error

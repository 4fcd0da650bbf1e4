"""Texts as tokens, and the encoder that reads them together with an image."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from addiffusion_env.errors import WeightsError
from addiffusion_env.files import in_a_line
from addiffusion_env.scorers import compute
from addiffusion_env.scorers.preprocess import Preprocess

if TYPE_CHECKING:
    from addiffusion_env.backbones.openvino import OpenVino

OPEN_CLIP_VOCABULARY = 49408  # of the tokenizer that comes with open_clip, OpenAI's


class Tokenizer:
    """A tokenizer of open_clip or transformers with the number of ids that its model reads.

    Pooled features are read at the end token, which both libraries keep when they truncate a text. A warning is issued
    for the first truncated text.

    Args:
        tokenizer: of ``open_clip.get_tokenizer``, or a transformers tokenizer with a padding token.
        length: how many ids the model reads.
    """

    not_identity = ("_warned",)

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.tokenizer = tokenizer
        self.length = length
        self._warned = False

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Returns (B, length) int64 ids, padded."""
        if hasattr(self.tokenizer, "pad_token_id"):
            return self._encode(texts, "max_length").input_ids
        for text in texts:
            self._warn(text, self._cut(text))
        return self.tokenizer(list(texts), context_length=self.length)

    def trimmed(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids padded only to the longest text of the batch, for encoders that mask padding; transformers only.

        Returns:
            ids: (B, T) int64 with T <= ``length``.
            mask: (B, T) int64, 1 for a token of the text, 0 for padding.
        """
        batch = self._encode(texts, "longest")
        return batch.input_ids, batch.attention_mask

    def _encode(self, texts: Sequence[str], padding: str) -> Any:
        batch = self.tokenizer(
            list(texts), padding=padding, truncation=True, max_length=self.length, return_tensors="pt"
        )
        for text, encoding in zip(texts, batch.encodings or (), strict=False):  # slow tokenizers have none
            self._warn(text, bool(encoding.overflowing))
        return batch

    def _cut(self, text: str) -> bool:
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is None:  # open_clip's tokenizer, which adds a start and an end token
            return hasattr(self.tokenizer, "encode") and len(self.tokenizer.encode(text)) + 2 > self.length
        cleaned = getattr(self.tokenizer, "clean_fn", str)(text)
        return len(inner(cleaned, verbose=False).input_ids) > self.length

    def _warn(self, text: str, cut: bool) -> None:
        if cut and not self._warned:
            self._warned = True
            warnings.warn(
                f"a scorer reads {self.length} tokens and {text[:60]!r}... has more: the rest is truncated; "
                "shown once for all such texts",
                UserWarning,
                stacklevel=5,
            )


def has_tokenizer(folder: Path) -> bool:
    """Whether ``folder`` holds a transformers tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt"))


def load_transformers_tokenizer(folder: Path, make: Any = None, **settings: Any) -> Any:
    """Loads the transformers tokenizer of a local folder.

    Args:
        folder: of the tokenizer.
        make: function that loads it, where its files do not name their class; by default
            ``AutoTokenizer.from_pretrained``.
        **settings: keyword arguments of ``make``.

    Raises:
        WeightsError: when there is none, it is broken, or does not support one of ``settings``.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        raise WeightsError(f"{folder} holds no tokenizer.json, vocab.json or vocab.txt", "point to a tokenizer folder")
    return _made(make or AutoTokenizer.from_pretrained, str(folder), **settings)


def beside_or_inside(folder: Path) -> Path | None:
    """The tokenizer folder of a model folder: itself, or ``../tokenizer`` as diffusers pipelines lay it out."""
    return next((place for place in (folder, folder.parent / "tokenizer") if has_tokenizer(place)), None)


def choose_tokenizer(
    given: str | Path | Tokenizer | None, config: Mapping[str, Any], folder: Path | None, name: str = ""
) -> Tokenizer:
    """The tokenizer of a model, as ``open_clip.get_tokenizer`` chooses it.

    A config that names a transformers tokenizer (``hf_tokenizer_name``) gets it with ``tokenizer_kwargs``, which say
    how texts are cleaned: for a folder from its files or ``../tokenizer``, for a name from the hub. Other configs get
    open_clip's own tokenizer, regardless of tokenizer files in the folder: its cleaning (ftfy, HTML entities) is what
    the model was trained with. Only a model whose vocabulary differs from that tokenizer's, which open_clip does not
    support, gets the folder's tokenizer; the emoji world's is one.

    Args:
        given: a tokenizer, or a folder with a transformers tokenizer, in place of the above.
        config: the model config.
        folder: the model's folder, or
        name: its open_clip name.

    Raises:
        WeightsError: when there is no tokenizer, or it is broken.
    """
    import open_clip
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

    if isinstance(given, Tokenizer):
        return given
    text = config.get("text_cfg", {})
    length = int(text.get("context_length", DEFAULT_CONTEXT_LENGTH))
    settings, named = text.get("tokenizer_kwargs", {}), text.get("hf_tokenizer_name", "")
    own = not named and int(text.get("vocab_size", OPEN_CLIP_VOCABULARY)) == OPEN_CLIP_VOCABULARY
    if given is None and name:
        return Tokenizer(open_clip.get_tokenizer(name), length)
    if given is None and own:
        return Tokenizer(_made(SimpleTokenizer, context_length=length, **settings), length)
    place = Path(given).expanduser() if given is not None else folder and beside_or_inside(folder)
    if place is None:
        wanted = f"its config names {named}" if named else f"its vocabulary of {text['vocab_size']} is not open_clip's"
        raise WeightsError(
            f"no tokenizer in {folder} or next to it, and {wanted}",
            "save the tokenizer there, or pass tokenizer=FOLDER",
        )
    if not named:
        return Tokenizer(load_transformers_tokenizer(place), length)
    settings = {"tokenizer_mode": text.get("tokenizer_mode"), **settings, "context_length": length}
    return Tokenizer(load_transformers_tokenizer(place, HFTokenizer, **settings), length)


def _made(make: Any, *args: Any, **settings: Any) -> Any:
    try:
        return make(*args, **settings)
    except Exception as error:
        raise WeightsError(
            f"{make.__qualname__} fails with {[*args, settings]}: {in_a_line(error)}",
            "check the tokenizer's files, and tokenizer_kwargs in open_clip_config.json",
        ) from error


class GroundedEncoder:
    """Text encoder with cross-attention to a vision transformer (Li et al., 2022, arXiv 2201.12086, figure 2).

    The text attends to the image in every layer, so only its ids can be computed in advance. Attention is
    bidirectional and padding is masked; therefore texts are padded only to the longest of the batch, which does not
    change the first token's feature and saves most of the text encoder's time.

    Args:
        vision: a transformers ``BlipVisionModel``.
        text: a transformers ``BlipTextModel`` with cross-attention.
        tokenizer: texts -> ids.
        preprocess: images in [-1, 1] -> what ``vision`` reads.
        device: where both run.
        dtype: their precision.

    Attributes:
        engine: runs ``vision``; ``None`` for torch.

    Raises:
        WeightsError: when the tokenizer has more ids than the text encoder has embeddings, or produces longer texts.
    """

    engine: OpenVino | None = None

    def __init__(
        self,
        vision: Any,
        text: Any,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        vocabulary, positions = text.config.vocab_size, text.config.max_position_embeddings
        padding = int(tokenizer.tokenizer.pad_token_id)
        if padding >= vocabulary or tokenizer.length > positions:
            raise WeightsError(
                f"the tokenizer pads with id {padding} to length {tokenizer.length}, "
                f"the text encoder has {vocabulary} ids and {positions} positions",
                "use the tokenizer that belongs to the model",
            )
        self.vision: nn.Module = vision.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.text: nn.Module = text.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.device = torch.device(device)
        self.dtype = dtype
        self.width = int(text.config.hidden_size)

    def __call__(self, images: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """(B, 3, H, W) images in [-1, 1] and ``B`` texts -> (B, width) float32 features on the encoder's device."""
        ids, mask = (value.to(self.device) for value in self.tokenizer.trimmed(texts))
        (seen,) = compute(self.engine, tokens_of, self.vision, self.preprocess(images, self.device, self.dtype))
        # No mask over the image: all of its tokens are used, and an all-ones mask changes nothing.
        read = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        return read[:, 0].float()


def tokens_of(vision: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A vision transformer's last hidden states, for :func:`.compute`."""
    return (vision(pixel_values=pixels).last_hidden_state,)

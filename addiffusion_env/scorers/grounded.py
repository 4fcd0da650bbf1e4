"""BLIP's image-grounded text encoder: one feature of a picture and a text together, read at the text's first token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from addiffusion_env.errors import WeightsError
from addiffusion_env.scorers.preprocess import Preprocess
from addiffusion_env.scorers.tokens import Tokenizer


class GroundedEncoder:
    """Text encoder with cross-attention to a vision transformer (Li et al., 2022, arXiv 2201.12086, figure 2).

    The text attends to the picture in every layer, so nothing of it can be computed ahead but its ids. Attention is
    bidirectional and padding is masked; therefore texts are padded only to the longest of the batch, which leaves the
    first token's feature as it is with full padding and saves most of the text encoder's time.

    Args:
        vision: a transformers ``BlipVisionModel``.
        text: a transformers ``BlipTextModel`` with cross-attention.
        tokenizer: texts -> ids.
        preprocess: pictures in [-1, 1] -> what ``vision`` reads.
        device: where both run.
        dtype: their precision.

    Raises:
        WeightsError: when the tokenizer has more ids than the text encoder has embeddings, or reads further.
    """

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
        """(B, 3, H, W) pictures in [-1, 1] and ``B`` texts -> (B, width) float32 features on the encoder's device."""
        ids, mask = (value.to(self.device) for value in self.tokenizer.trimmed(texts))
        seen = self.vision(pixel_values=self.preprocess(images, self.device, self.dtype)).last_hidden_state
        # No mask over the picture: all of its tokens count, and an all-ones mask changes nothing.
        read = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        return read[:, 0].float()

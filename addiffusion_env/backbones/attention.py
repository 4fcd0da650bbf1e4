"""Reads attention maps inside a denoiser while it runs.

The attention layers compute their output as they are (whether with SDPA, xFormers or LoRA); in addition, hooks on them
recompute the attention weights of the requested rows from the same projections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from addiffusion_env.errors import CapabilityError


class AttentionStore:
    """Averages attention maps over layers and heads.

    Args:
        rows: (r,) indices into the network batch of the requested maps.
        grid: (h, w) resolution of the maps; layers at other resolutions are ignored.
    """

    def __init__(self, rows: Tensor, grid: tuple[int, int]) -> None:
        self.rows = rows
        self.grid = grid
        self._sum: Tensor | None = None
        self._layers = 0

    def wants(self, image: Tensor) -> bool:
        """Whether a layer with these image tokens (B, h*w, C) has the requested resolution."""
        return image.ndim == 3 and image.shape[1] == self.grid[0] * self.grid[1]

    def add(self, weights: Tensor) -> None:
        """Adds one layer's share of attention, averaged over heads: (r, h*w, tokens) float32."""
        maps = weights.transpose(1, 2).unflatten(-1, self.grid)
        self._sum = maps if self._sum is None else self._sum + maps
        self._layers += 1

    def mean(self) -> Tensor:
        """(r, tokens, h, w): over the tokens of each cell the entries sum to 1, or to less in joint attention.

        Raises:
            CapabilityError: when no layer has the requested resolution.
        """
        if self._sum is None:
            raise CapabilityError(
                f"no cross-attention layer has resolution {self.grid[0]}x{self.grid[1]}",
                "use refine.maps=phrase, or another grid",
            )
        return self._sum / self._layers


def heads_of(attn: Any, projected: Tensor) -> Tensor:
    """(B, tokens, heads * d) -> (B, heads, tokens, d)."""
    return projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def cross_attention(attn: Any, image: Tensor, text: Tensor, rotary: None = None) -> Tensor:
    """Softmax(q k / sqrt(d)) of image tokens (B, N, C) over text tokens (B, T, D), averaged over heads: (B, N, T)."""
    query, key = heads_of(attn, attn.to_q(image)), heads_of(attn, attn.to_k(text))
    # Logits in float32: those of Stable Diffusion 2 overflow in half precision.
    return torch.softmax(query.float() @ key.float().transpose(-1, -2) * attn.scale, dim=-1).mean(1)


def joint_attention(attn: Any, image: Tensor, text: Tensor, rotary: Any) -> Tensor:
    """The text columns of joint attention's softmax over text and image keys, averaged over heads.

    Args:
        attn: a Flux attention layer with its own projections for text.
        image: (B, N, C) image tokens, already normalised and modulated.
        text: (B, T, C) text tokens, likewise.
        rotary: rotary embedding of text and image positions, in that order, as the layer's processor gets it.

    Returns:
        (B, N, T) float32. The rest of each cell's attention goes to image tokens, so rows sum to less than 1.
    """
    from diffusers.models.embeddings import apply_rotary_emb

    query = attn.norm_q(heads_of(attn, attn.to_q(image)))
    image_key = attn.norm_k(heads_of(attn, attn.to_k(image)))
    text_key = attn.norm_added_k(heads_of(attn, attn.add_k_proj(text)))
    key = torch.cat([text_key, image_key], dim=2)
    tokens = text.shape[1]
    if rotary is not None:
        rotated: Callable[..., Any] = apply_rotary_emb  # annotated as returning a tuple, as it does for other models
        query = rotated(query, tuple(angles[tokens:] for angles in rotary))
        key = rotated(key, rotary)
    total = query.new_zeros((len(query), query.shape[2], tokens), dtype=torch.float32)
    # Head by head: at 1024 pixels the logits of all 24 heads would take 1.7 GB per row.
    for head in range(query.shape[1]):
        scores = query[:, head].float() @ key[:, head].float().transpose(-1, -2) * query.shape[-1] ** -0.5
        total += torch.exp(scores[..., :tokens] - scores.logsumexp(-1, keepdim=True))
    return total / query.shape[1]


@contextmanager
def captured_attention(denoiser: nn.Module, store: AttentionStore) -> Iterator[None]:
    """Context manager in which every layer that attends from the image to the text also writes to ``store``.

    In diffusers' UNets that is attn2, attn1 being self-attention; in a Flux transformer the double-stream layers, since
    single-stream layers process text and image as one sequence.
    """
    joint = type(denoiser).__name__ == "FluxTransformer2DModel"
    weights: Callable[..., Tensor] = joint_attention if joint else cross_attention
    start, end = ("transformer_blocks.", ".attn") if joint else ("", ".attn2")

    def record(attn: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        image, text = args[0] if args else kwargs["hidden_states"], kwargs.get("encoder_hidden_states")
        text = text[0] if isinstance(text, tuple) else text  # an IP-Adapter's images are behind the text
        if text is not None and store.wants(image):
            rows = store.rows.to(image.device)
            store.add(weights(attn, image[rows], text[rows], kwargs.get("image_rotary_emb")))

    layers = [layer for name, layer in denoiser.named_modules() if name.startswith(start) and name.endswith(end)]
    handles = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        # A graph that was compiled before does not call hooks.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()

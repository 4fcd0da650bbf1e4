"""Reads attention maps and features inside a denoiser while it runs.

Each attention layer's own processor still computes the output (whether SDPA, xFormers or LoRA); in addition, the
attention weights of the requested rows are recomputed from the same projections. On leaving the context, the original
processor objects are restored.

They are by-products of the evaluation, so a policy that reads them needs neither a preview nor a scorer. Such features
were studied as inputs of small networks by Baranchuk et al. 2022 (arXiv:2112.03126).
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


class CaptureProcessor:
    """Calls a UNet cross-attention layer's own processor, then records its attention into a store."""

    def __init__(self, inner: Any, store: AttentionStore) -> None:
        self.inner = inner
        self.store = store

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The inner processor's output, unchanged."""
        output = self.inner(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        if encoder_hidden_states is not None and self.store.wants(hidden_states):
            rows = self.store.rows.to(hidden_states.device)
            self.store.add(cross_attention(attn, hidden_states[rows], encoder_hidden_states[rows]))
        return output


class JointCaptureProcessor:
    """Calls a Flux joint-attention layer's own processor, then records its image-to-text block into a store."""

    def __init__(self, inner: Any, store: AttentionStore) -> None:
        self.inner = inner
        self.store = store

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The inner processor's output, unchanged."""
        output = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb, **kwargs)
        if encoder_hidden_states is not None and self.store.wants(hidden_states):
            rows = self.store.rows.to(hidden_states.device)
            self.store.add(joint_attention(attn, hidden_states[rows], encoder_hidden_states[rows], image_rotary_emb))
        return output


def heads_of(attn: Any, projected: Tensor) -> Tensor:
    """(B, tokens, heads * d) -> (B, heads, tokens, d)."""
    return projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def cross_attention(attn: Any, image: Tensor, text: Tensor) -> Tensor:
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
        env_step: Callable[..., Any] = (
            apply_rotary_emb  # annotated as returning a tuple, which it does for other models
        )
        query = env_step(query, tuple(angles[tokens:] for angles in rotary))
        key = env_step(key, rotary)
    total = query.new_zeros((len(query), query.shape[2], tokens), dtype=torch.float32)
    # Head by head: at 1024 pixels the logits of all 24 heads would take 1.7 GB per row.
    for head in range(query.shape[1]):
        scores = query[:, head].float() @ key[:, head].float().transpose(-1, -2) * query.shape[-1] ** -0.5
        total += torch.exp(scores[..., :tokens] - scores.logsumexp(-1, keepdim=True))
    return total / query.shape[1]


@contextmanager
def swapped_processors(denoiser: Any, wrap: Callable[[str, Any], Any]) -> Iterator[None]:
    """Context manager that replaces a diffusers model's processors by ``wrap(name, processor)``."""
    before = dict(denoiser.attn_processors)
    try:
        denoiser.set_attn_processor({name: wrap(name, processor) for name, processor in before.items()})
        yield
    finally:
        # set_attn_processor empties the dict.
        denoiser.set_attn_processor(dict(before))


@contextmanager
def captured_cross_attention(denoiser: Any, store: AttentionStore) -> Iterator[None]:
    """Context manager in which every cross-attention layer of a UNet also writes to ``store``."""
    # In diffusers' UNets attn1 is self-attention and attn2 cross-attention.
    with swapped_processors(denoiser, lambda name, p: CaptureProcessor(p, store) if ".attn2." in name else p):
        yield


@contextmanager
def captured_joint_attention(denoiser: Any, store: AttentionStore) -> Iterator[None]:
    """Context manager in which every double-stream layer of a Flux transformer also writes to ``store``."""
    # Single-stream layers process text and image as one sequence; double-stream layers keep them separate.
    with swapped_processors(
        denoiser, lambda name, p: JointCaptureProcessor(p, store) if name.startswith("transformer_blocks.") else p
    ):
        yield


class FeatureHook:
    """Stores the pooled output of one module of a denoiser from its last call.

    It is a permanent forward hook: ``torch.compile`` traces only the hooks that are registered at the first call.

    Attributes:
        pooled: (N, C) float32, the mean over cells or tokens; ``None`` when the module has not run.
    """

    def __init__(self) -> None:
        self.pooled: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Pools (N, C, h, w) of a UNet's block, or (N, tokens, C) of a transformer's, the image tokens last."""
        value: Tensor = (output[-1] if isinstance(output, tuple) else output).detach()
        self.pooled = value.mean(dim=(2, 3) if value.ndim == 4 else 1, dtype=torch.float32)

    def take(self, rows: int) -> Tensor | None:
        """Returns (rows, C), the features of the first rows, and clears the store."""
        pooled, self.pooled = self.pooled, None
        # A copy: CUDA graphs write the next call's into the same memory.
        return None if pooled is None else pooled[:rows].clone()


def hook(module: nn.Module) -> FeatureHook:
    """The module's feature hook, registered if it has none. Backbones that share a denoiser share the hook."""
    for hook in module._forward_hooks.values():
        if isinstance(hook, FeatureHook):
            return hook
    made = FeatureHook()
    module.register_forward_hook(made)
    return made

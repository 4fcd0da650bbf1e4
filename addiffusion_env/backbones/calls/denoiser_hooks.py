"""Reads pooled features of the middle block and text-to-image attention from a denoiser while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from addiffusion_env.backbones.attention import AttentionStore, captured_attention
from addiffusion_env.backbones.batches import FeatureHook, hook
from addiffusion_env.backbones.calls.evaluator import Evaluator
from addiffusion_env.backbones.calls.measured import Measurements, first_step
from addiffusion_env.backbones.calls.open_call import NetworkRequest
from addiffusion_env.backbones.text import content_positions, expanded, tokenize
from addiffusion_env.errors import CapabilityError


class DenoiserHooks:
    """Reads features and attention of the prompt-conditioned rows.

    Args:
        evaluator: the evaluator whose network calls are observed.
        measured: which of those calls and rows are conditioned on the prompt.

    Attributes:
        feature_dim: width of the features; ``None`` if there is no middle block.
        grid: (h, w) of the attention maps; ``None`` if attention cannot be read.
    """

    def __init__(self, evaluator: Evaluator, measured: Measurements) -> None:
        self.evaluator, self.measured = evaluator, measured
        self.module = prompt_network(evaluator, measured)
        middle = None if self.module is None else middle_block(self.module)
        self.hook: FeatureHook | None = None if middle is None else hook(middle)
        self._features: dict[int, Tensor] = {}
        self._attention: dict[int, Tensor] = {}
        self._wanted: set[int] = set()
        self._grid: tuple[int, int] | None = None
        evaluator.networks.call_network = self._call
        self.grid = attention_grid(self.module, measured.layout.shape)
        self._tokens = 0
        self._measure()
        features = next(iter(self._features.values()), None)
        self.feature_dim = None if features is None else int(features.shape[-1])
        if features is None:  # the block does not run
            self.hook = None

    def _measure(self) -> None:
        """Runs a first step to find out which features and attention there are."""
        if self.hook is None and self.grid is None:
            return
        self.watch(None if self.grid is None else torch.ones(1), self.grid)
        try:
            first_step(self.evaluator, self.measured.request, None)
        except CapabilityError:  # no layer at this resolution: the tokens are not those of the latents alone
            self.grid = None
            self.watch(None, None)
            first_step(self.evaluator, self.measured.request, None)
        maps = self._attention.get(0)
        self.grid, self._tokens = (None, 0) if maps is None else (self.grid, len(maps))
        self._wanted = set()

    def content_positions(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """For each prompt the positions of its content tokens; empty if attention is not available."""
        pipe = self.evaluator.pipe
        kind = type(self.module).__name__
        tokenizer = getattr(pipe, "tokenizer_2" if kind == "FluxTransformer2DModel" else "tokenizer", None)
        if self.grid is None or tokenizer is None:
            return ((),) * len(texts)
        whole = expanded(pipe, tokenizer, texts)
        ids = tokenize(tokenizer, whole, int(min(tokenizer.model_max_length, self._tokens)), truncate=True)
        return content_positions(tokenizer, ids)

    def watch(self, capture: Tensor | None, grid: tuple[int, int] | None) -> None:
        """Observes the next batch's network calls; ``capture`` (B,) selects lanes to read attention of.

        Raises:
            CapabilityError: when attention is requested and cannot be read.
        """
        self._features.clear()
        self._attention.clear()
        self._wanted = set() if capture is None else set(torch.nonzero(capture).flatten().tolist())
        if self._wanted and grid is None:
            raise CapabilityError(
                f"the attention of a {type(self.module).__name__} cannot be read", "use refine.maps=phrase"
            )
        self._grid = grid

    def seen(self, size: int) -> tuple[Tensor | None, Tensor | None]:
        """((B, tokens, h, w) attention or ``None``, (B, F) features or ``None``) of the observed batch."""
        features = None
        if self.hook is not None and len(self._features) == size:
            features = torch.stack([self._features[lane] for lane in range(size)])
        attention = None
        if self._attention:
            blank = torch.zeros_like(next(iter(self._attention.values())))
            attention = torch.stack([self._attention.get(lane, blank) for lane in range(size)])
        return attention, features

    def _call(self, first: NetworkRequest, args: tuple, kwargs: dict, counts: list[int], lanes: list[int]) -> Any:
        branch = self.measured.prompt_sites.get(first.site)
        network = self.evaluator.networks.compiled.get(id(first.module), first.module)
        if self.module is not first.module or branch is None:
            return network(*args, **kwargs)
        rows = prompt_rows(counts, branch)
        wanted = [at for at, lane in enumerate(lanes) if lane in self._wanted]
        store = None
        if wanted and self._grid is not None:
            store = AttentionStore(torch.tensor([rows[at] for at in wanted]), self._grid)
        with nullcontext() if store is None else captured_attention(self.module, store):
            # Compiled code does not call the hooks that read attention.
            answer = (network if store is None else first.module)(*args, **kwargs)
        if self.hook is not None and (pooled := self.hook.take(sum(counts))) is not None:
            for at, lane in enumerate(lanes):
                if rows[at] < len(pooled):
                    self._features[lane] = pooled[rows[at]]
        if store is not None:
            for at, maps in zip(wanted, store.mean(), strict=True):
                self._attention[lanes[at]] = maps
        return answer


def attention_grid(module: Any, latent_shape: Sequence[int]) -> tuple[int, int] | None:
    """The resolution of a network's attention maps; ``None`` if its attention cannot be read.

    For a UNet it is the coarsest cross-attention of the downsampling path: there, maps follow objects, not texture.
    """
    kind = type(module).__name__
    if len(latent_shape) != 3:
        return None
    side = (int(latent_shape[1]), int(latent_shape[2]))
    if kind == "UNet2DConditionModel":
        levels = [at for at, block in enumerate(module.config.down_block_types) if "CrossAttn" in block]
        # Each level halves the sides of the one before and rounds up.
        return (-(-side[0] >> levels[-1]), -(-side[1] >> levels[-1])) if levels else None
    if kind == "FluxTransformer2DModel":
        return side[0] // 2, side[1] // 2
    return None


def prompt_rows(counts: Sequence[int], branch: int) -> list[int]:
    """The row of each lane's prompt in a joined call: by branch if all lanes have equally many, else by lane."""
    if all(count == counts[0] for count in counts):
        return [min(branch, counts[0] - 1) * len(counts) + lane for lane in range(len(counts))]
    starts = [sum(counts[:lane]) for lane in range(len(counts))]
    return [start + min(branch, count - 1) for start, count in zip(starts, counts, strict=True)]


def prompt_network(evaluator: Evaluator, measured: Measurements) -> Any:
    """The prompt-conditioned network: the largest of those called in the denoising loop."""
    names = {name for name, _ in measured.prompt_sites} or set(evaluator.networks.network_calls)
    modules = [getattr(evaluator.pipe, name) for name in sorted(names)]
    return max(modules, key=lambda module: sum(p.numel() for p in module.parameters()), default=None)


def middle_block(module: nn.Module) -> nn.Module | None:
    """A UNet's middle block, or the block in the middle of a transformer's longest list of blocks."""
    middle = getattr(module, "mid_block", None)
    if isinstance(middle, nn.Module):
        return middle
    lists = [part for part in module.children() if isinstance(part, nn.ModuleList) and len(part) > 0]
    lists = [part for part in lists if any(True for _ in part.parameters())]
    if not lists:
        return None
    blocks = max(lists, key=lambda part: sum(p.numel() for p in part.parameters()))
    return blocks[(len(blocks) - 1) // 2]

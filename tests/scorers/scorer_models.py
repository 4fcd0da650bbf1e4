"""Shapes, names and random weights of tiny models in the true file formats."""

from __future__ import annotations

import torch

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
MED_CONFIG = {
    "hidden_act": "gelu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "vocab_size": 60,
    "encoder_width": 768,  # as in the official file: wrong, and to be overridden by the vision transformer's width
}


def images(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    """(count, 3, size, size) smooth random images in [-1, 1]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def vision_state(width=128, depth=2, patch=16, positions=5, hidden=96):
    """Names and shapes of ImageReward's vision transformer (the package's ``vit.py``)."""
    yield "cls_token", (1, 1, width)
    yield "pos_embed", (1, positions, width)
    yield "patch_embed.proj.weight", (width, 3, patch, patch)
    yield "patch_embed.proj.bias", (width,)
    linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linears |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    for block in range(depth):
        for name, shape in linears.items():
            yield f"blocks.{block}.{name}.weight", shape
            yield f"blocks.{block}.{name}.bias", shape[:1]
        for norm in ("norm1", "norm2"):
            yield f"blocks.{block}.{norm}.weight", (width,)
            yield f"blocks.{block}.{norm}.bias", (width,)
    yield "norm.weight", (width,)
    yield "norm.bias", (width,)


def text_state(width=32, depth=2, hidden=48, seen=128, vocabulary=60, positions=64):
    """Names and shapes of ImageReward's text encoder (the package's ``med.py``)."""
    yield "embeddings.word_embeddings.weight", (vocabulary, width)
    yield "embeddings.position_embeddings.weight", (positions, width)
    linears = {"intermediate.dense": (hidden, width), "output.dense": (width, hidden)}
    for attention, source in (("attention", width), ("crossattention", seen)):
        linears |= {f"{attention}.self.query": (width, width), f"{attention}.output.dense": (width, width)}
        linears |= {f"{attention}.self.{name}": (width, source) for name in ("key", "value")}
    norms = ["attention.output.LayerNorm", "crossattention.output.LayerNorm", "output.LayerNorm"]
    for layer in range(depth):
        for name, shape in linears.items():
            yield f"encoder.layer.{layer}.{name}.weight", shape
            yield f"encoder.layer.{layer}.{name}.bias", shape[:1]
        for name in norms:
            yield f"encoder.layer.{layer}.{name}.weight", (width,)
            yield f"encoder.layer.{layer}.{name}.bias", (width,)
    yield "embeddings.LayerNorm.weight", (width,)
    yield "embeddings.LayerNorm.bias", (width,)


def head_state(widths=(32, 16, 8, 8, 4, 1)):
    """Names and shapes of the linear head."""
    for position, before, after in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
        yield f"layers.{position}.weight", (after, before)
        yield f"layers.{position}.bias", (after,)


def random_weights(shapes, prefix, generator):
    """Weights large enough that images and texts matter: the published initialisation gives constant scores."""
    state = {}
    for name, shape in shapes:
        value = torch.randn(shape, generator=generator) * (2.0 / max(shape[-1], 4)) ** 0.5
        state[prefix + name] = 1 + value if "norm" in name.lower() and name.endswith("weight") else value
    return state

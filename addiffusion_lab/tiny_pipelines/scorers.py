"""Tiny scorers with random weights in the real file formats: CLIP, ImageReward, DINOv2."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

Shapes = Iterable[tuple[str, tuple[int, ...]]]
"""Names of parameters and their shapes."""

MED_CONFIG: dict[str, Any] = {
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
"""ImageReward's text encoder."""


def clip_folder(folder: Path, width: int = 768) -> Path:
    """A two-layer open_clip model in its local-dir format; ViT-L/14's embeddings have 768 numbers."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    torch.manual_seed(3)
    config: dict[str, Any] = {
        "embed_dim": width,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    described = json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    (folder / "open_clip_config.json").write_text(described, encoding="utf-8")
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def dino_folder(folder: Path) -> Path:
    """A two-layer DINOv2."""
    torch.manual_seed(4)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def image_reward_folder(folder: Path) -> Path:
    """An ImageReward of two layers, with a BERT tokenizer of letters."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    state = random_weights(vision_state(), "blip.visual_encoder.", generator)
    state |= random_weights(text_state(), "blip.text_encoder.", generator)
    state |= random_weights(head_state(), "mlp.", generator)
    torch.save(state, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG), encoding="utf-8")
    letters = string.ascii_lowercase
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}), encoding="utf-8")
    return folder


def scorer_folders(root: Path, width: int = 768) -> dict[str, str]:
    """Saves the three scorers; returns their folders by part, as :func:`.hub_scorers` takes them.

    Args:
        root: where they are written.
        width: of CLIP's embeddings; 768 is that of ViT-L/14.
    """
    return {
        "clip": str(clip_folder(root / "clip", width)),
        "image_reward": str(image_reward_folder(root / "image_reward")),
        "dino": str(dino_folder(root / "dino")),
    }


def vision_state(width: int = 128, depth: int = 2, patch: int = 16, positions: int = 5, hidden: int = 96) -> Shapes:
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


def text_state(
    width: int = 32, depth: int = 2, hidden: int = 48, seen: int = 128, vocabulary: int = 60, positions: int = 64
) -> Shapes:
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


def head_state(widths: tuple[int, ...] = (32, 16, 8, 8, 4, 1)) -> Shapes:
    """Names and shapes of the linear head."""
    for position, before, after in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
        yield f"layers.{position}.weight", (after, before)
        yield f"layers.{position}.bias", (after,)


def random_weights(shapes: Shapes, prefix: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Weights large enough that images and texts matter: the published initialisation gives constant scores."""
    state = {}
    for name, shape in shapes:
        value = torch.randn(shape, generator=generator) * (2.0 / max(shape[-1], 4)) ** 0.5
        state[prefix + name] = 1 + value if "norm" in name.lower() and name.endswith("weight") else value
    return state

"""Tiny scorers in the real formats, and a backbone's predictions; tiny pipelines are in addiffusion_lab."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def clip_folder(folder: Path, width: int = 768) -> Path:
    """A two-layer open_clip model in its local-dir format; ViT-L/14's embeddings have 768 numbers."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    torch.manual_seed(3)
    config = {
        "embed_dim": width,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def dino_folder(folder: Path) -> Path:
    """A two-layer DINOv2."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(4)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**shape)).save_pretrained(folder)
    return folder


def predicted(backbone):
    x = torch.randn(2, *backbone.capabilities.latent_shape, generator=torch.Generator().manual_seed(0))
    scale = torch.full((2,), backbone.capabilities.default_guidance, dtype=torch.float64)
    sigma = torch.tensor([0.8, 0.4], dtype=torch.float64)
    return backbone.predict(x, sigma, backbone.encode(["a dog", "a red cup"]), scale).x0

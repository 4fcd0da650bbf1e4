"""Networks that return at once, so that only the Python around them is measured.

Outputs have the right shapes and depend on the input where that costs one reduction (scores, embeddings), so that a
policy's actions differ between lanes. Tokenisers, preprocessing, solvers and all checks run as usual; the preference
scorer is replaced as a whole.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


def make_instant(backbone: Any, scorers: Any) -> None:
    """Replaces the networks of the emoji world's backbone and scorers, in place.

    Args:
        backbone: a hand-written Stable Diffusion backbone (``backbones.stable_diffusion``).
        scorers: the emoji world's scorers.
    """
    unet, vae, preview, text = backbone.denoiser, backbone.vae, backbone.previewer, backbone.parts.text_encoder
    size = backbone.capabilities.image_size
    width = int(text.config.hidden_size)
    _replace(unet, lambda sample, *args, **kwargs: (torch.zeros_like(sample),))
    for autoencoder in (vae, preview):
        _replace(autoencoder, lambda x, *args, **kwargs: (x[:, :3, :1, :1].expand(-1, -1, *size),), "decode")
    # Prompts must differ: a pipeline's backbone tells lanes apart by the values that its loop reads.
    _replace(text, lambda ids, *args, **kwargs: (ids[..., None].float().expand(*ids.shape, width),))
    clip, dino = scorers.clip, scorers.dino
    clip_width, dino_width = clip.dim, dino.dim
    clip.model.encode_image = lambda images: _embedding(images, clip_width)
    clip.model.encode_text = lambda ids: _embedding(ids.float()[:, None, None], clip_width)
    _replace(dino.model, lambda pixel_values: SimpleNamespace(pooler_output=_embedding(pixel_values, dino_width)))
    scorers.preference._score = lambda images, texts: images.reshape(len(images), -1)[:, 0]


def _replace(module: nn.Module, function: Any, name: str = "forward") -> None:
    """Replaces a method of one module, by a class of its own: pipelines' stand-ins are subclasses of a part's class."""
    kind = type(module)
    method = lambda self, *args, **kwargs: function(*args, **kwargs)  # noqa: E731
    module.__class__ = type(kind.__name__, (kind,), {name: method, "__module__": kind.__module__})


def _embedding(values: Tensor, width: int) -> Tensor:
    """(B, width): a ramp whose slope is each row's own, from one entry of it."""
    own = values.reshape(len(values), -1)[:, :1].float()
    return 1 + own * torch.linspace(-1, 1, width, device=values.device)

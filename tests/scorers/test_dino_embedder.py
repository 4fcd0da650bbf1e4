"""DINOv2 embeddings."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from addiffusion_env.errors import ImageRangeError
from addiffusion_env.scorers.dino import DinoEmbedder
from addiffusion_env.scorers.preprocess import Preprocess


@torch.no_grad()
def test_equals_transformers_class_token(dino_folder, make_images):
    from transformers import Dinov2Model

    images = make_images(3, 32)
    dino = DinoEmbedder.from_pretrained(dino_folder)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    pixels = (((images + 1) / 2 - mean) / std)[..., 2:30, 2:30]
    wanted = Dinov2Model.from_pretrained(dino_folder).eval()(pixels).last_hidden_state[:, 0]
    assert torch.allclose(dino.embed_images(images), F.normalize(wanted, dim=-1), atol=1e-5)
    assert (dino.dim, dino.label) == (32, "tiny-dino")


def test_the_shipped_model_reads_images_as_they_are(scorers):
    assert scorers.dino.preprocess == Preprocess(64)
    assert scorers.dino.dim == 96


def test_rows_are_unit_and_do_not_depend_on_neighbours(dino_folder, make_images):
    dino = DinoEmbedder.from_pretrained(dino_folder)
    images = make_images(5, 32)
    whole = dino.embed_images(images)
    assert torch.allclose(whole.norm(dim=1), torch.ones(5), atol=1e-6)
    dino.chunk = 2
    assert torch.allclose(dino.embed_images(images), whole, atol=1e-4)
    assert dino.embed_images(images[:0]).shape == (0, 32)


def test_similarity_is_one_for_equals_and_falls_with_change(scorers, pairs):
    images = pairs[0][:, 0]
    noisy = (images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    own, other, changed = (scorers.dino.embed_images(x) for x in (images, images.roll(1, 0), noisy))
    assert torch.allclose(scorers.dino.similarity(own, own), torch.ones(24), atol=1e-5)
    near, far = scorers.dino.similarity(own, changed), scorers.dino.similarity(own, other)
    assert near.mean() > far.mean() + 0.2
    assert near.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_inside(dino_folder, make_images, dtype):
    embedded = DinoEmbedder.from_pretrained(dino_folder, dtype=dtype).embed_images(make_images(2, 32))
    assert embedded.dtype == torch.float32
    assert torch.allclose(embedded.norm(dim=1), torch.ones(2), atol=1e-6)


def test_bytes_are_refused(dino_folder):
    with pytest.raises(ImageRangeError, match="uint8"):
        DinoEmbedder.from_pretrained(dino_folder).embed_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))

"""Preprocessing on tensors against the published PIL pipelines."""

from __future__ import annotations

import pytest
import torch

from addiffusion_env.scorers.preprocess import CLIP_MEAN, CLIP_STD, Preprocess


def through_pil(image, transform):
    """The published way: bytes, PIL, their transform."""
    from PIL import Image

    array = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return transform(Image.fromarray(array))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96), (100, 60), (20, 28)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_equals_open_clips_pil_transform_up_to_bytes(images, height, width, mode):
    from open_clip.transform import image_transform

    picture = torch.nn.functional.interpolate(images(1, 64), size=(height, width), mode="bilinear")
    published = image_transform(32, is_train=False, resize_mode=mode)
    wanted = through_pil(picture[0], published)
    got = Preprocess(32, CLIP_MEAN, CLIP_STD, mode=mode)(picture, "cpu", torch.float32)[0]
    assert got.shape == wanted.shape == (3, 32, 32)
    # One byte step is 1/255/std = 0.015. Bars beside the picture must lie at the same rows, so compare all pixels.
    assert (got - wanted).abs().max() < 0.04


def test_pictures_of_the_right_size_pass_unchanged_without_mean_and_std(images):
    pictures = images(2, 64)
    assert torch.equal(Preprocess(64)(pictures, "cpu", torch.float32), pictures)


def test_overshoot_of_bicubic_is_clipped():
    edge = torch.full((1, 3, 16, 16), -1.0)
    edge[..., 8:] = 1.0
    enlarged = Preprocess(64)(edge, "cpu", torch.float32)
    assert enlarged.abs().max() == 1.0


def test_reads_transformers_settings():
    settings = {
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "resample": 3,
    }
    assert Preprocess.from_transformers(settings) == Preprocess(
        224, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resize=256, mode="shortest", interpolation="bicubic"
    )
    marked = torch.full((1, 3, 256, 256), -1.0)
    marked[..., 16:240, 16:240] = 1.0  # the centre 224
    prepared = Preprocess.from_transformers(settings)(marked, "cpu", torch.float32)
    assert prepared.shape == (1, 3, 224, 224)
    assert prepared[0, 0].unique().item() == pytest.approx((1 - 0.1) / 0.4)

"""Preprocessing on tensors against the published PIL pipelines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from addiffusion_env.errors import WeightsError
from addiffusion_env.scorers.image_scores import to_pixels
from addiffusion_env.scorers.preprocess import CLIP_MEAN, CLIP_STD, Preprocess, resize_bytes


def through_pil(image, transform):
    """The published way: bytes, PIL, their transform."""
    from PIL import Image

    array = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return transform(Image.fromarray(array))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96), (100, 60), (20, 28)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_equals_open_clips_pil_transform_on_bytes(make_images, height, width, mode):
    from open_clip.transform import image_transform

    image = torch.nn.functional.interpolate(make_images(1, 64), size=(height, width), mode="bilinear")
    image = ((image + 1) * 127.5).round() / 127.5 - 1
    published = image_transform(32, is_train=False, resize_mode=mode)
    wanted = through_pil(image[0], published)
    got = Preprocess(32, CLIP_MEAN, CLIP_STD, mode=mode)(image, "cpu", torch.float32)[0]
    assert got.shape == wanted.shape == (3, 32, 32)
    # One byte step is 1/255/std = 0.015. Bars beside the image must lie at the same rows, so compare all pixels.
    assert (got - wanted).abs().max() < 1e-5


def test_images_of_the_right_size_pass_unchanged_without_mean_and_std(make_images):
    images = make_images(2, 64)
    assert torch.equal(Preprocess(64)(images, "cpu", torch.float32), images)


def test_overshoot_of_bicubic_is_clipped():
    edge = torch.full((1, 3, 16, 16), -1.0)
    edge[..., 8:] = 1.0
    enlarged = Preprocess(64)(edge, "cpu", torch.float32)
    assert enlarged.abs().max() == 1.0


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_equals_pillow_to_the_byte(interpolation):
    from PIL import Image

    rng = np.random.default_rng(0)
    for _ in range(40):
        (before, after) = rng.integers(1, 200, (2, 2)).tolist()
        array = rng.integers(0, 256, (*before, 3), dtype=np.uint8)
        resized = Image.fromarray(array).resize(after[::-1], getattr(Image.Resampling, interpolation.upper()))
        wanted = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        image = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 127.5 - 1
        got = (resize_bytes(image, tuple(after), interpolation) + 1) * 127.5
        assert torch.equal(got[0].round().byte(), wanted), (before, after)


def test_resizing_rounds_as_saving_does_and_takes_any_number_of_images(make_images):
    images = make_images(11, 24).bfloat16()
    saved = torch.from_numpy(np.stack([to_pixels(image.float()) for image in images])).permute(0, 3, 1, 2)
    resized = resize_bytes(images, (10, 13), "bicubic")
    assert resized.shape == (11, 3, 10, 13)
    assert torch.equal(resized, resize_bytes(saved.float() / 127.5 - 1, (10, 13), "bicubic"))
    assert resize_bytes(images[:0], (10, 13), "bicubic").shape == (0, 3, 10, 13)


SETTINGS = {
    "do_center_crop": True,
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "resample": 3,
}


def test_reads_transformers_settings():
    assert Preprocess.from_transformers(SETTINGS) == Preprocess(
        224, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resize=256, interpolation="bicubic", floor_margins=True
    )
    marked = torch.full((1, 3, 256, 256), -1.0)
    marked[..., 16:240, 16:240] = 1.0  # the centre 224
    prepared = Preprocess.from_transformers(SETTINGS)(marked, "cpu", torch.float32)
    assert prepared.shape == (1, 3, 224, 224)
    assert prepared[0, 0].unique().item() == pytest.approx((1 - 0.1) / 0.4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_size": {"height": 224, "width": 196}}, "crop_size=.*expected a square"),
        ({"size": {"height": 224, "width": 196}}, "size=.*expected a square"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "expected shortest_edge, or height and width"),
        ({"resample": 1}, "resample=1, expected 2 or 3"),
        ({"do_pad": True}, "do_pad=true"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "image_processor_type='ConvNext.*expected Bit"),
    ],
)
def test_a_step_that_it_cannot_take_is_refused(changes, message):
    with pytest.raises(WeightsError, match=message):
        Preprocess.from_transformers({**SETTINGS, **changes})


def test_an_open_clip_setting_that_it_does_not_know_is_refused():
    with pytest.raises(WeightsError, match="resize_mode='crop', expected shortest, longest or squash"):
        Preprocess.from_open_clip({"resize_mode": "crop"})
    with pytest.raises(WeightsError, match=r"size=.*expected a square"):
        Preprocess.from_open_clip({"size": (224, 196)})

"""Cheap pictures: tiny decoders, the linear map that stands in for them, and their sizes."""

from __future__ import annotations

import dataclasses
import json
import warnings

import pytest
import torch

from addiffusion_env.backbones.diffusers_backbone import resized
from addiffusion_env.backbones.previews import (
    FLUX_FACTORS,
    SD_FACTORS,
    SDXL_FACTORS,
    LinearPreview,
    PreviewSpec,
    load_preview,
)
from addiffusion_env.errors import ConfigError, WeightsError

SPEC = PreviewSpec("nobody/no-such-tiny-decoder", SD_FACTORS)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def empty_hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_without_a_tiny_decoder_the_linear_map_is_used_and_said():
    with pytest.warns(UserWarning, match="linear map") as caught:
        decoder = load_preview(SPEC, None, 4, CPU, torch.float32)
    assert isinstance(decoder, LinearPreview)
    message = str(caught[0].message)
    assert "hf download nobody/no-such-tiny-decoder" in message
    assert "preview=linear" in message


def test_the_linear_map_by_choice_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder = load_preview(SPEC, "linear", 4, CPU, torch.bfloat16)
    assert decoder.dtype == torch.bfloat16


def test_a_decoder_that_was_asked_for_must_be_there(tmp_path):
    with pytest.raises(WeightsError, match="no such folder"):
        load_preview(SPEC, str(tmp_path / "absent"), 4, CPU, torch.float32)
    with pytest.raises(WeightsError, match="someone/decoder"):
        load_preview(SPEC, "someone/decoder", 4, CPU, torch.float32)


def test_decoders_of_other_latents_or_kinds_are_refused(tiny, tmp_path):
    with pytest.raises(WeightsError, match="decodes 16 latent channels, this model has 4"):
        load_preview(SPEC, str(tiny("flux").preview), 4, CPU, torch.float32)
    with pytest.raises(ConfigError, match="made for 4 latent channels, this model has 16"):
        load_preview(SPEC, "linear", 16, CPU, torch.float32)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(WeightsError, match="holds a AutoencoderKL"):
        load_preview(SPEC, str(tmp_path), 4, CPU, torch.float32)


@pytest.mark.parametrize("factors", [SD_FACTORS, SDXL_FACTORS, FLUX_FACTORS], ids=["sd", "sdxl", "flux"])
def test_linear_map_is_affine_a_cell(factors):
    decoder = LinearPreview(factors)
    channels = len(factors.weights)
    assert torch.allclose(decoder.decode(torch.zeros(1, channels, 2, 3))[0][0, :, 1, 2], torch.tensor(factors.bias))
    latents = torch.randn(2, channels, 4, 5)
    picture = decoder.decode(latents)[0]
    assert picture.shape == (2, 3, 4, 5)
    cell = torch.tensor(factors.weights).T @ latents[1, :, 3, 2] + torch.tensor(factors.bias)
    torch.testing.assert_close(picture[1, :, 3, 2], cell)
    assert factors.source


def test_sdxl_factors_are_the_published_ones():
    """(60, -60, 25, -70), (60, -5, 15, -50), (60, 10, -5, -35) and (150, 140, 130) for colours in [0, 255]."""
    published = torch.tensor([[60, -60, 25, -70], [60, -5, 15, -50], [60, 10, -5, -35]]).float()
    latents = torch.randn(1, 4, 1, 1)
    colours = published @ latents[0, :, 0, 0] + torch.tensor([150.0, 140.0, 130.0])
    ours = LinearPreview(SDXL_FACTORS).decode(latents)[0][0, :, 0, 0]
    torch.testing.assert_close((ours + 1) * 127.5, colours)


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", "flux"])
@pytest.mark.parametrize("kind", ["tiny", "linear"])
def test_previews_have_their_size_and_range(tiny, name, kind):
    backbone = tiny(name).wrap(**({} if kind == "tiny" else {"preview": "linear"}))
    x0 = 3 * torch.randn(3, *backbone.capabilities.latent_shape)
    picture = backbone.preview(x0)
    assert picture.shape == (3, 3, *backbone.capabilities.preview_size)
    assert picture.dtype == torch.float32
    assert -1 <= float(picture.min()) < float(picture.max()) <= 1


def test_no_more_is_decoded_than_the_scorers_read(tiny):
    backbone = tiny("sd15").wrap()
    smaller = dataclasses.replace(backbone.capabilities, preview_size=(8, 8))
    decoded = []
    decode = backbone.previewer.decode
    backbone.previewer.decode = lambda latents, **kwargs: decoded.append(latents.shape) or decode(latents, **kwargs)
    backbone.capabilities = smaller
    assert backbone.preview(torch.randn(2, 4, 8, 8)).shape == (2, 3, 8, 8)
    assert decoded == [(2, 4, 4, 4)]


def test_large_pictures_are_previewed_at_224_pixels(tiny):
    backbone = tiny("sd15").wrap(image_size=512)
    assert backbone.capabilities.preview_size == (224, 224)
    assert backbone.preview(torch.randn(1, 4, 256, 256)).shape == (1, 3, 224, 224)


def test_shrinking_keeps_constants_and_equal_sizes():
    constant = torch.full((1, 2, 64, 64), 0.7)
    torch.testing.assert_close(resized(constant, (28, 28)), torch.full((1, 2, 28, 28), 0.7))
    assert resized(constant, (64, 64)) is constant


def test_the_full_decoder_takes_a_few_at_a_time(tiny, monkeypatch):
    from addiffusion_env.backbones import diffusers_backbone

    backbone = tiny("sd15").wrap()
    x0 = torch.randn(5, 4, 8, 8)
    together = backbone.decode(x0)
    monkeypatch.setattr(diffusers_backbone, "DECODE_PIXELS", 2 * 16 * 16)
    torch.testing.assert_close(backbone.decode(x0), together, atol=1e-5, rtol=1e-5)

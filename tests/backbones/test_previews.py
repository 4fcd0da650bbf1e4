"""Previews: tiny decoders, the least-squares map that replaces them, and their sizes."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from addiffusion_env.backbones.batches import resized
from addiffusion_env.backbones.calls import evaluator, preview_decoder
from addiffusion_env.backbones.calls.preview_decoder import LatentColours
from addiffusion_env.errors import WeightsError

NAMES = ("sd15", pytest.param("sdxl", marks=pytest.mark.slow), "flux")


@pytest.fixture(autouse=True)
def empty_hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("name", "decoder"), [("sd15", "taesd"), ("sdxl", "taesdxl"), ("flux", "taef1")])
def test_without_a_tiny_decoder_a_fitted_map_is_used_with_a_warning(tiny, name, decoder):
    backbone = tiny(name).wrap(preview=None)
    x0 = torch.randn(1, *backbone.capabilities.latent_shape)
    with pytest.warns(UserWarning, match="least-squares map") as caught:
        backbone.preview(x0)
    message = next(str(w.message) for w in caught if "least-squares" in str(w.message))
    assert f"madebyollin/{decoder}" in message and "preview='linear'" in message
    with warnings.catch_warnings():  # no warning if chosen explicitly
        warnings.simplefilter("error", UserWarning)
        tiny(name).wrap(preview="linear").preview(x0)


def test_a_requested_decoder_must_exist(tiny, tmp_path):
    with pytest.raises(WeightsError, match="no such folder"):
        tiny("sd15").wrap(preview=str(tmp_path / "absent"))
    with pytest.raises(WeightsError, match="someone/decoder"):
        tiny("sd15").wrap(preview="someone/decoder")


def test_decoders_of_other_latents_or_kinds_are_refused(tiny, tmp_path):
    with pytest.raises(WeightsError, match="decodes 16 latent channels, this model has 4"):
        tiny("sd15").wrap(preview=str(tiny("flux").preview))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(WeightsError, match="holds a AutoencoderKL"):
        tiny("sd15").wrap(preview=str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_the_map_is_affine_a_cell(tiny, name):
    backbone = tiny(name).wrap(preview="linear")
    x0 = torch.randn(2, *backbone.capabilities.latent_shape)
    backbone.preview(x0)
    colours = backbone.preview_decoder.decoder
    assert isinstance(colours, LatentColours)
    cell = colours.weights.T @ x0[1, :, 3, 2] + colours.bias
    torch.testing.assert_close(colours(x0)[1, :, 3, 2], cell)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["tiny", "linear"])
def test_previews_have_their_size_and_range(tiny, name, kind):
    backbone = tiny(name).wrap(**({} if kind == "tiny" else {"preview": "linear"}))
    x0 = 3 * torch.randn(3, *backbone.capabilities.latent_shape)
    image = backbone.preview(x0)
    assert image.shape == (3, 3, *backbone.capabilities.preview_size)
    assert image.dtype == torch.float32
    assert -1 <= float(image.min()) < float(image.max()) <= 1


def test_no_more_is_decoded_than_the_scorers_read(tiny, monkeypatch):
    monkeypatch.setattr(preview_decoder, "PREVIEW_SIDE", 8)
    backbone = tiny("sd15").wrap()
    assert backbone.capabilities.preview_size == (8, 8)
    decoded = []
    decode = backbone.preview_decoder.decoder.decode
    backbone.preview_decoder.decoder.decode = lambda latents, **kwargs: (
        decoded.append(latents.shape) or decode(latents, **kwargs)
    )
    assert backbone.preview(torch.randn(2, 4, 8, 8)).shape == (2, 3, 8, 8)
    assert decoded == [(2, 4, 4, 4)]


def test_shrinking_keeps_constants_and_equal_sizes():
    constant = torch.full((1, 2, 64, 64), 0.7)
    torch.testing.assert_close(resized(constant, (28, 28)), torch.full((1, 2, 28, 28), 0.7))
    assert resized(constant, (64, 64)) is constant


def test_the_full_decoder_takes_a_few_at_a_time(tiny, monkeypatch):
    backbone = tiny("sd15").wrap()
    x0 = torch.randn(5, 4, 8, 8)
    together = backbone.decode(x0)
    monkeypatch.setattr(evaluator, "DECODED_AT_ONCE", 2)
    sizes = []
    handle = backbone.pipe.vae.decoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    torch.testing.assert_close(backbone.decode(x0), together, atol=1e-5, rtol=1e-5)
    handle.remove()
    assert sizes == [2, 2, 1]

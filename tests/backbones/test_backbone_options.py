"""Placing and running a loaded backbone: memory, offloading, half precision, options by name, the text cache."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny_models import predicted

from addiffusion_env.backbones.diffusers_backbone import NEGATIVE
from addiffusion_env.backbones.memory import check_memory, place
from addiffusion_env.envs.loading import load_backbone
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import AdDiffusionError, ConfigError, PromptError, UnknownNameError, WeightsError

NAMES = ("sd15", "sd21", "sdxl", "flux")


# ---------------------------------------------------------------------------------------------- the GPU
def test_weights_that_do_not_fit_say_by_how_much():
    check_memory("some/model", 2 * 2**30, 3 * 2**30, torch.device("cuda"), "none")
    with pytest.raises(WeightsError) as caught:
        check_memory("some/model", 24 * 2**30, 8 * 2**30, torch.device("cuda"), "none")
    message = str(caught.value)
    assert "some/model needs 24.0 GiB" in message
    assert "8.0 GiB free" in message
    assert "offload=model" in message
    assert "dtype=auto" in message
    assert "AdDiffusion-Emoji-v0" in message
    with pytest.raises(WeightsError) as caught:
        check_memory("some/model", 24 * 2**30, 8 * 2**30, torch.device("cuda"), "none", torch.bfloat16)
    assert "dtype" not in str(caught.value)


def test_running_out_of_memory_on_the_way_is_the_same_error(tiny, monkeypatch):
    pipe = copy.copy(tiny("sd15").pipe)

    def full(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(pipe), "to", full)
    with pytest.raises(WeightsError, match="some/model needs"):
        place(pipe, "some/model", torch.device("cpu"), "none")


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloading_needs_a_gpu(tiny, offload):
    with pytest.raises(ConfigError, match=f"offload={offload} was asked for on the CPU"):
        tiny("sd15").load(offload=offload)


@pytest.mark.parametrize("name", NAMES)
def test_offloaded_components_leave_the_gpu_to_one_another(tiny, name, monkeypatch):
    """With stubs for accelerate's hooks: what matters is when they are told to send their component away."""
    events = []
    hooks = [SimpleNamespace(offload=lambda part=part: events.append(f"{part} leaves")) for part in ("text", "vae")]
    pipe = copy.copy(tiny(name).pipe)
    pipe._all_hooks = hooks
    backbone = tiny(name).wrap(pipe)
    for method in ("encode_uncached", "denoise"):
        true = getattr(backbone, method)
        monkeypatch.setattr(backbone, method, lambda *args, m=method, f=true: events.append(m) or f(*args))
    true_decode = backbone.vae.decode
    monkeypatch.setattr(backbone.vae, "decode", lambda *a, **k: events.append("decode") or true_decode(*a, **k))
    away = ["text leaves", "vae leaves"]
    x0 = predicted(backbone)
    assert events == [*away, "encode_uncached", *away, "denoise"]
    backbone.decode(x0)
    assert events[6:] == [*away, "decode", *away]


class HalfAutoencoder:
    """An autoencoder in half precision that keeps a record of the precision it decodes in."""

    def __init__(self, force_upcast=True, broken=False):
        self.config = SimpleNamespace(force_upcast=force_upcast, scaling_factor=0.5, shift_factor=None)
        self.dtype, self.broken, self.decoded_in = torch.float16, broken, []

    def to(self, dtype):
        self.dtype = dtype

    def decode(self, latents, return_dict):
        self.decoded_in.append((self.dtype, latents.dtype))
        if self.broken:
            raise RuntimeError("no")
        return (torch.zeros(len(latents), 3, 16, 16, dtype=self.dtype),)


@pytest.mark.parametrize(
    ("name", "force_upcast", "inside"),
    [
        ("sdxl", True, torch.float32),
        ("flux", True, torch.float32),
        ("sdxl", False, torch.float16),
        ("sd15", True, torch.float16),  # its config says so too, and its pipeline decodes in half precision
    ],
)
def test_an_autoencoder_that_overflows_decodes_in_float32(tiny, name, force_upcast, inside):
    backbone = tiny(name).wrap()
    backbone.vae = HalfAutoencoder(force_upcast)
    assert backbone.decode(torch.zeros(1, *backbone.capabilities.latent_shape)).dtype == torch.float32
    assert backbone.vae.decoded_in == [(inside, inside)]
    assert backbone.vae.dtype == torch.float16


def test_the_autoencoder_is_half_again_after_an_error(tiny):
    backbone = tiny("sdxl").wrap()
    backbone.vae = HalfAutoencoder(broken=True)
    with pytest.raises(RuntimeError, match="no"):
        backbone.decode(torch.zeros(1, 4, 8, 8))
    assert backbone.vae.decoded_in == [(torch.float32, torch.float32)]
    assert backbone.vae.dtype == torch.float16


# ---------------------------------------------------------------------------------------------- options
def test_unknown_options_name_the_nearest(tiny):
    with pytest.raises(ConfigError, match="did you mean 'vae_tiling'"):
        tiny("sd15").load(vae_tilling=True)
    with pytest.raises(ConfigError, match="sd15 backbone has no option 'max_sequence_length'"):
        tiny("sd15").load(max_sequence_length=77)
    with pytest.raises(ConfigError, match="flux backbone has no option 'attention_slicing'"):
        tiny("flux").load(attention_slicing=True)
    with pytest.raises(UnknownNameError, match="did you mean 'model'"):
        tiny("sd15").load(offload="modle")


@pytest.mark.parametrize("side", [15, 0, 18])
def test_impossible_sizes(tiny, side):
    with pytest.raises(ConfigError, match=f"multiple of 4 pixels, got {side}"):
        tiny("sd15").wrap(image_size=side)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": "16"}, "backbone_options.image_size must be int or null, got '16'"),
        ({"image_size": 16.0}, "backbone_options.image_size must be int or null, got 16.0"),
        ({"image_size": [16, 24]}, r"backbone_options.image_size must be int or null, got .16, 24."),
        ({"batch_buckets": 3}, "backbone_options.batch_buckets must be a list of int or null, got 3"),
        ({"compile": "fast"}, "unknown mode of compile 'fast'\n  -> .*known: .*max-autotune"),
    ],
    ids=str,
)
def test_values_of_another_type_are_refused_by_name(tiny, options, message):
    settings = EnvSettings(
        backbone="sd15", name_or_path=str(tiny("sd15").folder), device="cpu", backbone_options=options
    )
    for make in (lambda: tiny("sd15").wrap(**options), lambda: load_backbone(settings)):
        with pytest.raises(AdDiffusionError, match=message):
            make()


def test_a_list_among_the_options_reaches_the_model(tiny):
    options = tiny("sd15").options(batch_buckets=[4, 16])
    folder = str(tiny("sd15").folder)
    settings = EnvSettings(backbone="sd15", name_or_path=folder, device="cpu", backbone_options=options)
    assert load_backbone(settings) is load_backbone(settings)
    assert tuple(load_backbone(settings).buckets) == (4, 16)


@pytest.mark.parametrize(
    "options", [{"channels_last": True}, {"attention_slicing": True}, {"attention_slicing": "max"}], ids=str
)
def test_options_change_how_not_what(tiny, options):
    plain, other = tiny("sd15").load(), tiny("sd15").load(**options)
    torch.testing.assert_close(predicted(other), predicted(plain), atol=1e-4, rtol=1e-4)
    x0 = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(other.decode(x0), plain.decode(x0), atol=1e-4, rtol=1e-4)


def test_large_pictures_are_decoded_in_tiles(tiny, monkeypatch):
    backbone = tiny("sd15").load(vae_tiling=True, image_size=32)  # a tile has 16 pixels
    tiled, sizes = backbone.vae.tiled_decode, []
    monkeypatch.setattr(backbone.vae, "tiled_decode", lambda z, **k: sizes.append(tuple(z.shape)) or tiled(z, **k))
    x0 = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    found, plain = backbone.decode(x0), tiny("sd15").load(image_size=32).decode(x0)
    assert sizes == [(2, 4, 16, 16)]
    assert found.shape == plain.shape == (2, 3, 32, 32)
    assert float(torch.corrcoef(torch.stack([found.flatten(), plain.flatten()]))[0, 1]) > 0.9


def test_options_reach_the_model(tiny):
    backbone = tiny("sd15").load(channels_last=True, attention_slicing="max", vae_tiling=True)
    assert backbone.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert {type(p).__name__ for p in backbone.denoiser.attn_processors.values()} == {"SlicedAttnProcessor"}
    assert backbone.vae.use_tiling


def test_the_compiled_network_is_called_except_for_capturing(tiny, monkeypatch):
    calls = []

    def compiled(module, mode, dynamic):
        assert mode == "reduce-overhead" and not dynamic

        def call(*args, **kwargs):
            calls.append(len(args[0]))
            return module(*args, **kwargs)

        return call

    monkeypatch.setattr(torch, "compile", compiled)  # compiling for real takes a C++ compiler and minutes
    backbone = tiny("sd15").wrap(compile="reduce-overhead")
    torch.testing.assert_close(predicted(backbone), predicted(tiny("sd15").wrap()))
    assert calls == [4]
    x = torch.randn(1, *backbone.capabilities.latent_shape)
    one = torch.ones(1, dtype=torch.float64)
    backbone.predict(x, one, backbone.encode(["a dog"]), one, torch.tensor([True]))
    assert calls == [4]
    backbone.predict(x, one, backbone.encode(["a dog"]), one)
    assert calls == [4, 1]


def test_other_sizes_of_picture(tiny):
    backbone = tiny("sdxl").wrap(image_size=24)
    assert backbone.capabilities.latent_shape == (4, 12, 12)
    assert backbone.encode(["a dog"]).tensors["time_ids"].tolist() == [[24, 24, 0, 0, 24, 24]]
    assert backbone.decode(torch.zeros(1, 4, 12, 12)).shape == (1, 3, 24, 24)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_that_do_not_fit(tiny, name):
    text = "a photo of " * 40
    with pytest.raises(PromptError, match="truncate_prompts=true"):
        tiny(name).wrap().encode([text])
    whole = tiny(name).wrap(truncate_prompts=True).encode([text])
    assert whole.tensors["text"].shape[1] == tiny(name).wrap().capabilities.max_tokens


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_encoded_once_and_the_cache_is_bounded(tiny, name, monkeypatch):
    from addiffusion_env.backbones import diffusers_backbone

    backbone = tiny(name).wrap()
    first = backbone.encode(["a dog", "a cup"])
    seen = []
    encode = backbone.encode_uncached
    monkeypatch.setattr(backbone, "encode_uncached", lambda texts: seen.append(texts) or encode(texts))
    again = backbone.encode(["a cup", "a dog", "a sofa", "a cup"])
    assert seen == [["a sofa"]]
    torch.testing.assert_close(again.tensors["text"][:2], first.tensors["text"].flip(0), atol=1e-5, rtol=1e-5)
    own = [value for name, value in first.tensors.items() if not name.startswith(NEGATIVE)]
    row = sum(value[0].numel() * value.element_size() for value in own)
    monkeypatch.setattr(diffusers_backbone, "TEXT_CACHE", 2 * row)
    backbone.encode(["a cat"])
    assert list(backbone._texts) == ["a cup", "a cat"]  # the two used last
    monkeypatch.setattr(diffusers_backbone, "TEXTS_KEPT", 1)
    backbone.encode(["a dog"])
    assert list(backbone._texts) == ["a dog"]


@pytest.mark.parametrize("name", NAMES)
def test_the_text_cache_keeps_no_batch_alive_and_one_negative_prompt(tiny, name):
    backbone = tiny(name).wrap()
    backbone.encode(["a dog", "a cup", "a sofa"])
    backbone.encode(["a cat", "a red cup"])
    kept = [row.tensors for row in backbone._texts.values()]
    for tensors in kept:
        for value in tensors.values():
            assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
    for key in kept[0]:
        places = {tensors[key].data_ptr() for tensors in kept}
        assert len(places) == (1 if key.startswith(NEGATIVE) else 5)

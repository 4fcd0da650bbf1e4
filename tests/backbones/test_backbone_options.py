"""Device placement and options of a loaded backbone: memory, offloading, half precision, the text cache."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from tiny_models import predicted

from addiffusion_env.backbones import stable_diffusion
from addiffusion_env.backbones.emoji import EmojiBackbone
from addiffusion_env.backbones.memory import check_memory, place
from addiffusion_env.envs.settings import EnvSettings, load_backbone
from addiffusion_env.errors import (
    AdDiffusionError,
    CapabilityError,
    ConfigError,
    PromptError,
    UnknownNameError,
    WeightsError,
)

SLOW = pytest.mark.slow  # one UNet and one transformer run in `make test`; the backbone is the same for all
NAMES = ("sd15", pytest.param("sd21", marks=SLOW), pytest.param("sdxl", marks=SLOW), "flux")


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
    assert "AdDiffusion-Emoji-v2" in message
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
    with pytest.raises(ConfigError, match=f"offload={offload} was requested on the CPU"):
        tiny("sd15").load(offload=offload)


@pytest.mark.parametrize("name", NAMES)
def test_offloaded_components_leave_the_gpu_to_one_another(tiny, name):
    """With stubs for accelerate's hooks, which record when they are asked to offload their component."""
    pipe = copy.copy(tiny(name).pipe)
    net = pipe.transformer if name == "flux" else pipe.unet
    modules = {pipe.text_encoder: "text", net: "net", pipe.vae.decoder: "vae"}
    loaded, seen = set(), []

    def called(module, inputs):
        loaded.add(modules[module])
        seen.append((modules[module], sorted(loaded)))

    pipe._all_hooks = [
        SimpleNamespace(model=pipe.vae if part == "vae" else module, offload=lambda part=part: loaded.discard(part))
        for module, part in modules.items()
    ]
    handles = [module.register_forward_pre_hook(called) for module in modules]
    try:
        backbone = tiny(name).wrap(pipe)
        backbone.decode(predicted(backbone))
        predicted(backbone)
    finally:
        for handle in handles:
            handle.remove()
    assert {part for part, _ in seen} == {"text", "net", "vae"}
    assert all(there == [part] for part, there in seen)


@contextmanager
def decoded_in(vae, broken=False):
    """The precisions that an autoencoder decodes in."""
    found = []

    def noted(module, inputs):
        found.append((next(module.parameters()).dtype, inputs[0].dtype))
        if broken:
            raise RuntimeError("no")

    handle = vae.decoder.register_forward_pre_hook(noted)
    yield found
    handle.remove()


def half(tiny, name, force_upcast=True):
    pipe = copy.deepcopy(tiny(name).pipe).to(torch.float16)
    pipe.vae.register_to_config(force_upcast=force_upcast)
    pipe.set_progress_bar_config(disable=True)
    return tiny(name).wrap(pipe)


@pytest.mark.parametrize(
    ("name", "force_upcast", "inside"),
    [
        ("sdxl", True, torch.float32),
        ("sdxl", False, torch.float16),
        ("sd15", True, torch.float16),  # its config says so too, and its pipeline decodes in half precision
    ],
)
def test_an_autoencoder_that_overflows_decodes_in_float32(tiny, name, force_upcast, inside):
    backbone = half(tiny, name, force_upcast)
    x0 = torch.randn(2, *backbone.capabilities.latent_shape, generator=torch.Generator().manual_seed(0))
    with decoded_in(backbone.pipe.vae) as precisions:
        images = backbone.decode(x0)
    assert images.dtype == torch.float32 and set(precisions) == {(inside, inside)}
    assert backbone.pipe.vae.dtype == torch.float16
    torch.testing.assert_close(images[1:], backbone.decode(x0[1:]), atol=1e-2, rtol=0)


def test_the_autoencoder_is_half_again_after_an_error(tiny):
    backbone = half(tiny, "sdxl")
    with decoded_in(backbone.pipe.vae, broken=True) as precisions, pytest.raises(CapabilityError, match="no"):
        backbone.decode(torch.zeros(2, 4, 8, 8))
    assert precisions == [(torch.float32, torch.float32)]
    assert backbone.pipe.vae.dtype == torch.float16


# ---------------------------------------------------------------------------------------------- options
def test_unknown_options_name_the_nearest(tiny):
    with pytest.raises(ConfigError, match="did you mean 'vae_tiling'"):
        tiny("sd15").load(vae_tilling=True)
    with pytest.raises(ConfigError, match="sd15 backbone has no option 'max_sequence_length'"):
        tiny("sd15").load(max_sequence_length=77)
    with pytest.raises(ConfigError, match=r"no option 'distilled_guidance'\n.*as guidance_scale in .*pipeline_kwargs"):
        tiny("flux").load(distilled_guidance=3.5)
    with pytest.raises(ConfigError, match=r"no option 'attention_slicing'\n.*pipe\.enable_attention_slicing\(\)"):
        tiny("sd15").load(attention_slicing=True)
    with pytest.raises(ConfigError, match="no convolution in a FluxTransformer2DModel"):
        tiny("flux").load(channels_last=True)
    with pytest.raises(UnknownNameError, match="did you mean 'model'"):
        tiny("sd15").load(offload="modle")


@pytest.mark.parametrize("side", [15, 0, 18])
def test_impossible_sizes(tiny, side):
    with pytest.raises(ConfigError, match=rf"\b{side}\b"):
        tiny("sd15").wrap(image_size=side)


def test_a_size_that_the_pipeline_would_round_is_refused(tiny):
    with pytest.raises(ConfigError, match="height=18 was given, and a FluxPipeline draws 16"):
        tiny("flux").wrap(image_size=18)


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
    assert tuple(load_backbone(settings).options.buckets) == (4, 16)


def test_options_change_how_not_what(tiny):
    plain, other = tiny("sd15").load(), tiny("sd15").load(channels_last=True)
    torch.testing.assert_close(predicted(other), predicted(plain), atol=1e-4, rtol=1e-4)
    x0 = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(other.decode(x0), plain.decode(x0), atol=1e-4, rtol=1e-4)


def test_large_images_are_decoded_in_tiles(tiny, monkeypatch):
    backbone = tiny("sd15").load(vae_tiling=True, image_size=32)  # a tile has 16 pixels
    vae = backbone.pipe.vae
    tiled, sizes = vae.tiled_decode, []
    monkeypatch.setattr(vae, "tiled_decode", lambda z, **k: sizes.append(tuple(z.shape)) or tiled(z, **k))
    x0 = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    found, plain = backbone.decode(x0), tiny("sd15").load(image_size=32).decode(x0)
    assert sizes == [(2, 4, 16, 16)]
    assert found.shape == plain.shape == (2, 3, 32, 32)
    assert float(torch.corrcoef(torch.stack([found.flatten(), plain.flatten()]))[0, 1]) > 0.9


def test_options_reach_the_model(tiny):
    backbone = tiny("sd15").load(channels_last=True, vae_tiling=True)
    assert backbone.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert backbone.pipe.vae.use_tiling


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


def test_other_sizes_of_image(tiny):
    backbone = tiny("sdxl").wrap(image_size=24)
    assert backbone.capabilities.latent_shape == (4, 12, 12)
    sizes = []

    def noted(module, args, kwargs):
        sizes.append(kwargs["added_cond_kwargs"]["time_ids"].tolist())

    handle = backbone.denoiser.register_forward_pre_hook(noted, with_kwargs=True)
    try:
        predicted(backbone)
    finally:
        handle.remove()
    assert sizes[-1] == [[24, 24, 0, 0, 24, 24]] * 4
    assert backbone.decode(torch.zeros(1, 4, 12, 12)).shape == (1, 3, 24, 24)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_that_do_not_fit(tiny, name):
    text = "a photo of " * 40
    with pytest.raises(PromptError, match="truncate_prompts=true"):
        tiny(name).wrap().encode([text])
    assert len(tiny(name).wrap(truncate_prompts=True).encode([text])) == 1


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_encoded_once_and_the_cache_is_bounded(tiny, name):
    backbone = tiny(name).wrap()
    encoded = []
    handle = backbone.pipe.text_encoder.register_forward_hook(lambda *_: encoded.append(1))

    def evaluated(*texts):
        encoded.clear()
        x = torch.randn(len(texts), *backbone.capabilities.latent_shape, generator=torch.Generator().manual_seed(0))
        half = torch.full((len(texts),), 0.5, dtype=torch.float64)
        scale = torch.full((len(texts),), backbone.capabilities.default_guidance, dtype=torch.float64)
        found = backbone.predict(x, half, backbone.encode(texts), scale).x0
        return found, len(encoded)

    try:
        first, prompts = evaluated("a dog", "a cup")
        again, none = evaluated("a dog", "a cup")
        assert prompts > 0 and none == 0
        torch.testing.assert_close(again, first, atol=1e-5, rtol=1e-5)
        backbone.evaluator.texts._texts.capacity = 1
        evaluated("a sofa")
        assert evaluated("a sofa")[1] == 0 < evaluated("a dog")[1]
    finally:
        handle.remove()


def test_the_emoji_worlds_texts_are_encoded_once_and_the_cache_is_bounded(monkeypatch):
    emoji = EmojiBackbone.from_pretrained()
    first = emoji.encode(["a dog", "a cup"])
    seen, encode = [], emoji.encode_uncached
    monkeypatch.setattr(emoji, "encode_uncached", lambda texts: seen.append(texts) or encode(texts))
    again = emoji.encode(["a cup", "a dog", "a sofa", "a cup"])
    assert seen == [["a sofa"]]
    torch.testing.assert_close(again.tensors["text"][:2], first.tensors["text"].flip(0), atol=1e-5, rtol=1e-5)
    row = first.tensors["text"][0]
    monkeypatch.setattr(stable_diffusion, "TEXT_CACHE", 2 * row.numel() * row.element_size())
    emoji.encode(["a cat"])
    assert list(emoji._texts._items) == ["a cup", "a cat"]  # the two used last
    monkeypatch.setattr(stable_diffusion, "TEXTS_KEPT", 1)
    emoji.encode(["a dog", "a red cup"])
    assert list(emoji._texts._items) == ["a red cup"]
    for row in emoji._texts._items.values():  # no batch is kept alive
        for value in row.tensors.values():
            assert value.untyped_storage().nbytes() == value.numel() * value.element_size()

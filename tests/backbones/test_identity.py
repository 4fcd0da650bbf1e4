"""Identity of components by value; encoded texts are cached as long as their encoder is unchanged."""

import copy
import functools
import inspect
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from addiffusion_env.backbones import Identified
from addiffusion_env.backbones.base import Load
from addiffusion_env.backbones.calls.joining import Digests
from addiffusion_env.backbones.calls.text_cache import TextCache, encoder_state
from addiffusion_env.backbones.emoji import WEIGHTS, EmojiBackbone
from addiffusion_env.backbones.fingerprint import fingerprint, versions_of, weights_digest
from addiffusion_env.backbones.identity import described, differences, networks_in, packages
from addiffusion_env.envs.settings import EnvSettings, load_backbone
from addiffusion_env.scorers.utility import CALIBRATORS, Utility, calibrator_of

SLOW = pytest.mark.slow  # one UNet and one transformer run in `make test`; the backbone is the same for all
NAMES = ("sd15", pytest.param("sd21", marks=SLOW), pytest.param("sdxl", marks=SLOW), "flux")


class Judge(Identified):
    """A user-defined component."""

    not_identity = ("asked",)

    def __init__(self, **held):
        self.asked = 0
        self.__dict__.update(held)


@dataclass(frozen=True)
class Setting:
    """Plain."""

    at: float


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 4)


def scorer_of(factor):
    return lambda image: image.mean() * factor


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (lambda: linear(), lambda: copy.deepcopy(linear()), lambda: linear(1)),
        (lambda: linear(), lambda: linear(), lambda: linear().double()),
        (lambda: torch.ones(2), lambda: torch.ones(2), lambda: torch.zeros(2)),
        (lambda: np.ones(2), lambda: np.ones(2), lambda: np.ones(3)),
        (lambda: Setting(0.5), lambda: Setting(0.5), lambda: Setting(0.4)),
        (lambda: scorer_of(1.0), lambda: scorer_of(1.0), lambda: scorer_of(2.0)),
        (lambda: functools.partial(max, 1), lambda: functools.partial(max, 1), lambda: functools.partial(max, 2)),
        (lambda: Judge(a=1, asked=0), lambda: Judge(a=1, asked=9), lambda: Judge(a=2)),
        (lambda: {1, 2}, lambda: {2, 1}, lambda: {1}),
        (lambda: b"a", lambda: b"a", lambda: b"b"),
        (lambda: Judge(of=Judge(a=1).identity), lambda: Judge(of=Judge(a=1).identity), lambda: Judge(of=1)),
    ],
    ids=[
        "weights",
        "dtype",
        "tensor",
        "array",
        "dataclass",
        "closure",
        "partial",
        "attributes",
        "set",
        "bytes",
        "nested",
    ],
)
def test_equal_content_is_described_alike_and_other_content_is_not(one, same, other):
    whole = [described(make()) for make in (one, same, other)]
    assert whole[0] == whole[1] != whole[2]
    assert json.loads(json.dumps(whole)) == whole


def test_a_component_that_holds_itself_and_its_secrets():
    judge = Judge(api_key="sk-1234", token="t", tokens=3, path=Path("x"), nothing=None)
    judge.me = judge
    found = judge.identity
    assert found["me"] == f"{__name__}.Judge" and found["tokens"] == 3 and "asked" not in found
    assert "sk-1234" not in json.dumps(found) and "token" not in found


def test_packages_are_those_of_the_classes(emoji, scorers):
    found = packages({"backbone": emoji.identity, "scorers": described(scorers)})
    assert {"torch", "diffusers", "transformers", "open_clip_torch", "addiffusion-env"} <= set(found)
    assert found["torch"] == torch.__version__.partition("+")[0]


def test_differences_name_the_place_and_cut_hashes():
    one, other = described({"a": {"b": linear()}, "n": float("nan")}), described({"a": {"b": linear(1)}, "n": 1.0})
    assert [line.partition(":")[0] for line in differences(one, other)] == ["a.b.weights", "n"]
    assert differences(one, described({"a": {"b": linear()}, "n": float("nan")})) == []
    assert [place for place, _ in networks_in(one)] == ["a.b"]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "a view", "half", "bool", "whole numbers", "scalar"])
def test_weights_are_hashed_by_content_whatever_the_layout(layout):
    def module(value):
        made = nn.Module()
        made.register_buffer("kept", value)
        return made

    value = torch.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)
    value = {
        "half": lambda: value.to(torch.bfloat16),
        "bool": lambda: value > 9,
        "whole numbers": lambda: value.to(torch.int16),
        "scalar": lambda: value.sum(),
    }.get(layout, lambda: value)()
    held = {
        "channels_last": lambda: value.contiguous(memory_format=torch.channels_last),
        "a view": lambda: torch.cat([value[:1], value])[1:],
    }.get(layout, lambda: value.clone())()
    changed = held.clone()
    last = (1,) * held.ndim
    changed[last] = 0 if held.dtype == torch.bool else changed[last] + 64
    assert weights_digest(module(held)) == weights_digest(module(value)) != weights_digest(module(changed))
    assert fingerprint(module(held))[0][1:] != fingerprint(module(changed))[0][1:]


def test_a_digest_follows_edits_in_place_and_past_torchs_counters():
    module = linear()
    kept = weights_digest(module), fingerprint(module), versions_of(module)
    assert (weights_digest(module), fingerprint(module), versions_of(module)) == kept
    module.weight.data[0, 0] += 1  # no version counter counts this
    assert weights_digest(module) != kept[0] and fingerprint(module) != kept[1]
    module.weight.data[0, 0] -= 1
    with torch.no_grad():
        module.weight.mul_(2)
    assert weights_digest(module) != kept[0] and versions_of(module) != kept[2]


def edited_past_the_counters(pipe, encoder):
    encoder.get_input_embeddings().weight.data.mul_(1.3)


def edited_in_place(pipe, encoder):
    with torch.no_grad():
        next(encoder.parameters()).add_(0.5)


def swapped(pipe, encoder):
    encoder.load_state_dict({name: value * 0.7 for name, value in encoder.state_dict().items()})


CHANGES = [edited_past_the_counters, edited_in_place, swapped]


def encoded(pipe, cache=None, text="a dog"):
    """A pipeline's encoding of a prompt as one tensor; with or without a cache."""
    encode = pipe.encode_prompt if cache is None else cache.overrides()["encode_prompt"]
    own = inspect.signature(pipe.encode_prompt).parameters
    given = {"prompt": text, "prompt_2": None, "device": torch.device("cpu"), "num_images_per_prompt": 1}
    given["do_classifier_free_guidance"] = False
    found = encode(**{name: value for name, value in given.items() if name in own})
    return torch.cat([value.float().flatten() for value in found if isinstance(value, torch.Tensor)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", CHANGES)
def test_encoded_texts_do_not_outlive_their_encoder(tiny, name, change):
    """After a change of any encoder a prompt is encoded as by the pipeline itself."""
    for part in ("text_encoder", "text_encoder_2"):
        pipe = copy.copy(tiny(name).pipe)
        encoder = copy.deepcopy(getattr(pipe, part, None))
        if encoder is None:
            continue
        setattr(pipe, part, encoder)
        cache, state = TextCache(pipe, Digests()), encoder_state(pipe)
        before = encoded(pipe, cache)
        assert encoded(pipe, cache).equal(before) and encoder_state(pipe) == state
        change(pipe, encoder)
        assert encoder_state(pipe) != state
        torch.testing.assert_close(encoded(pipe, cache), encoded(pipe), atol=1e-6, rtol=1e-6)
        assert not encoded(pipe, cache).equal(before)


@pytest.mark.parametrize(
    "change", [CHANGES[0], *(pytest.param(change, marks=pytest.mark.slow) for change in CHANGES[1:])]
)
def test_the_emoji_worlds_texts_do_not_outlive_their_encoder(change):
    emoji, fresh = EmojiBackbone.from_pretrained(), EmojiBackbone.from_pretrained()
    before, state = emoji.encode(["a dog", "a cup"]), emoji.identity
    assert emoji.identity == fresh.identity  # whatever was encoded before
    for backbone in (emoji, fresh):
        change(None, backbone.parts.text_encoder)
    found, wanted = (backbone.encode(["a dog", "a cup"]) for backbone in (emoji, fresh))
    for key, value in wanted.tensors.items():
        torch.testing.assert_close(found.tensors[key], value, atol=1e-6, rtol=1e-6)
        assert not value.equal(before.tensors[key])
    assert [line.partition(":")[0] for line in differences(state, emoji.identity)] == ["parts.text_encoder.weights"]


def test_a_textual_inversion_is_read_after_the_first_image(tiny):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny("sd15").folder, safety_checker=None)
    backbone, cache = tiny("sd15").wrap(pipe), TextCache(pipe, Digests())
    before, state = encoded(pipe, cache, "a sks"), backbone.identity
    pipe.load_textual_inversion({"sks": torch.full((16,), 0.4)}, token="sks")
    found = encoded(pipe, cache, "a sks")
    torch.testing.assert_close(found, encoded(pipe, text="a sks"), atol=1e-6, rtol=1e-6)
    assert not found.equal(before)
    changed = {line.partition(":")[0] for line in differences(state, backbone.identity)}
    assert {"pipe.text_encoder.weights", "pipe.tokenizer.vocabulary"} <= changed


def test_an_adapters_scale_in_a_text_encoder_is_followed(tiny):
    pipe = copy.copy(tiny("sd15").pipe)
    encoder = pipe.text_encoder = copy.deepcopy(pipe.text_encoder)
    layer = next(module for module in encoder.modules() if hasattr(module, "fc1"))

    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base_layer, self.scaling = base, {"style": 1.0}

        def forward(self, x):
            return self.base_layer(x) * (1 + self.scaling["style"])

    layer.fc1 = Adapted(layer.fc1)
    cache, state = TextCache(pipe, Digests()), encoder_state(pipe)
    before = encoded(pipe, cache)
    layer.fc1.scaling["style"] = 0.7 / 0.7 + 1e-9  # as a scale for one call leaves it
    assert encoder_state(pipe) == state
    layer.fc1.scaling["style"] = 0.2
    found = encoded(pipe, cache)
    assert not found.equal(before)
    torch.testing.assert_close(found, encoded(pipe), atol=1e-6, rtol=1e-6)
    backbone = tiny("sd15").wrap(pipe)
    scales = dict(networks_in(backbone.identity))["pipe.text_encoder"]["adapter_scales"]
    assert scales == ["{'style': 0.2}"]


def test_offloaded_weights_are_the_same_weights(tiny):
    """As with ``offload=sequential``: the layers are empty, accelerate stores the weights."""
    accelerate = pytest.importorskip("accelerate")
    unet = copy.deepcopy(tiny("sd15").pipe.unet)
    before = weights_digest(unet), fingerprint(unet)
    accelerate.cpu_offload(unet, execution_device=torch.device("cpu"))
    assert next(unet.parameters()).device.type == "meta"
    assert (weights_digest(unet), fingerprint(unet)) == before


def test_rewritten_weights_are_reloaded(tmp_path):
    """A notebook that trains, evaluates, trains again and evaluates again with the same folder."""
    from safetensors.torch import load_file, save_file

    from addiffusion_env.backbones.emoji import write_manifest

    folder = shutil.copytree(WEIGHTS, tmp_path / "weights")
    settings = EnvSettings(name_or_path=str(folder))
    first = load_backbone(settings)
    assert load_backbone(settings) is first
    path = folder / "preview" / "diffusion_pytorch_model.safetensors"
    save_file({name: value * 0.5 for name, value in load_file(path).items()}, path)
    write_manifest(folder)
    second = load_backbone(settings)
    assert second is not first
    assert differences(first.identity, second.identity)[0].startswith("parts.preview.weights: ")
    assert first.identity == type(first).from_pretrained(Load()).identity  # what ships, under another path


def test_a_refitted_calibrator_has_another_identity(tmp_path):
    path = tmp_path / "mine.safetensors"
    shutil.copy(CALIBRATORS / "emoji.safetensors", path)
    first, utility = calibrator_of(str(path)), Utility(calibrator=str(path))
    known = described(utility)
    assert calibrator_of(str(path)) is first
    assert described(Utility(calibrator="emoji"))["calibrator"] == known["calibrator"]
    from dataclasses import replace

    replace(first, prior=first.prior * 2).save(path)
    assert np.array_equal(calibrator_of(str(path)).prior, first.prior * 2)
    assert described(utility) != known


def test_clips_texts_do_not_outlive_its_model(scorers, prompts):
    clip = copy.copy(scorers.clip)
    clip.model = copy.deepcopy(clip.model)
    before = clip.embed_texts(prompts[:1])
    with torch.no_grad():
        clip.model.token_embedding.weight.mul_(1.5)
    after = clip.embed_texts(prompts[:1])
    assert not after.equal(before)
    clip.model = scorers.clip.model
    torch.testing.assert_close(clip.embed_texts(prompts[:1]), before, atol=1e-6, rtol=1e-6)

"""The engine OpenVINO: torch's numbers, rows that depend on no other, nothing stale. ``make openvino`` runs it."""

from __future__ import annotations

import copy
import importlib.util
import multiprocessing
import os
import pickle
import sys
import threading
import warnings

import pytest
import torch
from torch import nn

from addiffusion_env.agents.pipeline import AdaptivePipeline
from addiffusion_env.backbones import openvino as module
from addiffusion_env.backbones.base import Load
from addiffusion_env.backbones.emoji import EmojiBackbone
from addiffusion_env.backbones.identity import described, differences
from addiffusion_env.backbones.openvino import OpenVino, core
from addiffusion_env.backbones.stable_diffusion import decode
from addiffusion_env.checks.backbones import BACKBONE_CONTRACTS
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import Finish
from addiffusion_env.envs.settings import EnvSettings, load_backbone, load_scorers
from addiffusion_env.errors import (
    AdDiffusionError,
    CapabilityError,
    ConfigError,
    MissingPackageError,
    NumericsError,
    UnknownNameError,
)
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts

INSTALLED = importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not INSTALLED, reason="needs the extra openvino")
HAS_BF16 = INSTALLED and "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
ON = {"engine": "openvino"}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Converted networks are kept here, not in the home of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CACHE", tmp_path_factory.mktemp("openvino"))
        yield module.CACHE


@pytest.fixture(scope="module")
def converted(folder):
    return load_backbone(EnvSettings(backbone_options=ON))


@pytest.fixture(scope="module")
def its_scorers(converted):
    return load_scorers(converted)


@pytest.fixture
def decoder(emoji):
    """A preview decoder of one's own, the smallest network."""
    return copy.deepcopy(emoji.previewer)


def latents(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def predicted(backbone, prompts, rows=slice(None), capture=None):
    """One evaluation of up to seven lanes at different noise levels, the second and third without guidance."""
    texts = [prompt.text for prompt in prompts]
    levels = torch.from_numpy(backbone.sigmas(len(texts), "trailing")[: len(texts)].copy())
    scale = torch.full((len(texts),), 4.0, dtype=torch.float64)
    scale[1:3] = 1.0
    asked = None if capture is None else capture[rows]
    return backbone.predict(latents(len(texts))[rows], levels[rows], backbone.encode(texts[rows]), scale[rows], asked)


def close(found, wanted):
    """Equal to 1e-5 of the largest number."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@needs_openvino
def test_the_numbers_are_torchs(emoji, scorers, converted, its_scorers, prompts):
    found, wanted = predicted(converted, prompts), predicted(emoji, prompts)
    close(found.x0, wanted.x0)
    close(found.features, wanted.features)
    assert found.calls.tolist() == wanted.calls.tolist() and found.attention is None
    x0 = wanted.x0.clamp(-3, 3)
    close(converted.preview(x0), emoji.preview(x0))
    images = emoji.decode(x0)
    close(converted.decode(x0), images)
    found, wanted = its_scorers.scores(images, prompts), scorers.scores(images, prompts)
    for name in ("clip_image", "dino", "preference"):
        close(*(torch.from_numpy(getattr(scores, name)) for scores in (found, wanted)))


@needs_openvino
@pytest.mark.parametrize("rows", [slice(0, 1), slice(4, 7)], ids=["alone", "three"])
def test_a_row_is_the_same_in_every_batch(converted, its_scorers, prompts, rows):
    every, some = predicted(converted, prompts), predicted(converted, prompts, rows)
    assert torch.equal(every.x0[rows], some.x0)
    assert torch.equal(every.features[rows], some.features)
    assert torch.equal(converted.preview(every.x0)[rows], converted.preview(some.x0))
    images = converted.decode(every.x0)
    assert torch.equal(images[rows], converted.decode(some.x0))
    whole, part = its_scorers.scores(images, prompts), its_scorers.scores(images[rows], prompts[rows])
    assert (whole.clip_image[rows] == part.clip_image).all() and (whole.dino[rows] == part.dino).all()


@needs_openvino
def test_a_policy_acts_as_in_torch_and_draws_the_same_in_three_lanes_as_in_sixteen(emoji, converted):
    texts = [prompt.text for prompt in EmojiPrompts("test").take(16, seed=4)]
    seeds = list(range(16))
    pipe = AdaptivePipeline(converted, "emoji", max_lanes=16)
    sixteen = pipe(texts, seeds=seeds, output_type="np")
    converted._texts.clear()
    pipe.max_lanes = 3
    three = pipe(texts, seeds=seeds, output_type="np")
    assert three.actions == sixteen.actions
    assert (three.images == sixteen.images).all()
    plain = AdaptivePipeline(emoji, "emoji")(texts[:6], seeds=seeds[:6], output_type="np")
    assert plain.actions == sixteen.actions[:6]
    assert abs(plain.images - sixteen.images[:6]).max() < 0.01


@needs_openvino
@pytest.mark.parametrize("contract", BACKBONE_CONTRACTS, ids=lambda contract: contract.__name__)
def test_it_holds_the_contracts_of_a_backbone(converted, contract):
    contract(converted)


@needs_openvino
def test_attention_maps_are_torchs_and_no_image_depends_on_them(emoji, converted, prompts):
    capture = torch.tensor([False, True, False, True, False, False, False])
    found, plain = predicted(converted, prompts, capture=capture), predicted(converted, prompts)
    assert torch.equal(found.x0, plain.x0) and torch.equal(found.features, plain.features)
    torch.testing.assert_close(found.attention, predicted(emoji, prompts, capture=capture).attention)
    assert found.attention[1].any() and not found.attention[2].any()


@needs_openvino
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_told_from_the_others(emoji, converted, its_scorers, prompts, value):
    """OpenVINO by itself decodes NaN to an ordinary image."""
    x = latents(3)
    x[1, 2, 5, 5] = value
    for name in ("decode", "preview"):
        found, clean = getattr(converted, name)(x), getattr(converted, name)(latents(3))
        assert found[1].isnan().all() and torch.equal(found[[0, 2]], clean[[0, 2]])
    arguments = torch.full((3,), 2.0, dtype=torch.float64), emoji.encode([prompt.text for prompt in prompts[:3]])
    guidance = torch.tensor([4.0, 4.0, 1.0], dtype=torch.float64)
    found, wanted = (backbone.predict(x, *arguments, guidance) for backbone in (converted, emoji))
    assert found.x0.flatten(1).isfinite().all(1).tolist() == [True, False, True]
    assert wanted.x0.flatten(1).isfinite().all(1).tolist() == [True, False, True]
    requests = [Finish(x[row : row + 1], prompt) for row, prompt in enumerate(prompts[:3])]
    outcomes = Engine(converted, its_scorers)._finished(requests)
    assert [isinstance(outcome, NumericsError) for outcome in outcomes] == [False, True, False]


@needs_openvino
def test_another_size_than_the_converted_one_is_refused(converted, prompts):
    words = r"UNet2DConditionModel on OpenVINO takes float32 inputs of shapes \(2, 4, 16, 16\), \(2,\), \(2, 32, 192\)"
    text, ones = converted.encode([prompt.text for prompt in prompts[:2]]), torch.ones(2, dtype=torch.float64)
    with pytest.raises(CapabilityError, match=words + r", got float32 \(2, 4, 8, 8\).*\n  -> use the model's own size"):
        converted.predict(torch.randn(2, 4, 8, 8), ones, text, ones)
    for wrong in (torch.zeros(4, 16, 16), torch.zeros(1, 4, 16, 16, dtype=torch.float64)):
        with pytest.raises(CapabilityError, match="AutoencoderKL on OpenVINO takes float32 inputs"):
            converted.engine.run(decode, converted.vae, wrong)


@needs_openvino
def test_two_threads_get_their_own_results(converted):
    inputs = [latents(2, seed) for seed in range(8)]
    wanted = [converted.preview(x) for x in inputs]
    wrong = []

    def work(first):
        for index in [*range(first, 8, 2)] * 10:
            if not torch.equal(converted.preview(inputs[index]), wanted[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@needs_openvino
def test_results_are_not_overwritten_by_the_next_call(converted):
    first, x = latents(2), latents(2, 1)
    found, kept, given = converted.preview(first), converted.preview(first).clone(), first.clone()
    converted.preview(x)
    assert torch.equal(found, kept) and torch.equal(first, given)


@needs_openvino
def test_changed_weights_are_never_stale(emoji, converted, decoder, folder):
    backbone, x = copy.copy(converted), latents(2)
    backbone.previewer = decoder
    before, files = backbone.preview(x), set(folder.iterdir())
    with torch.no_grad():
        decoder.decoder.layers[-1].weight.mul_(0.5)
    after = backbone.preview(x)
    assert not torch.allclose(after, before, atol=1e-3)
    plain = copy.copy(emoji)
    plain.previewer = decoder
    close(after, plain.preview(x))
    decoder.decoder.layers[-1].weight.data.mul_(0.5)  # which torch does not count
    backbone.refresh()
    with pytest.raises(CapabilityError, match="AutoencoderTiny on OpenVINO takes float32 inputs"):
        backbone.engine.run(decode, decoder, torch.zeros(1, 4, 8, 8))  # does not become the new size
    close(backbone.preview(x), plain.preview(x))
    assert set(folder.iterdir()) == files  # training fills no disk


@needs_openvino
def test_a_hook_that_would_not_be_called_is_refused_by_name(converted, prompts):
    handle = converted.denoiser.mid_block.register_forward_hook(a_hook)
    try:
        with pytest.raises(CapabilityError, match=r"the hook \S*a_hook of its layer 'mid_block' is not called\n  -> r"):
            predicted(converted, prompts)
    finally:
        handle.remove()
    predicted(converted, prompts)


def a_hook(module, inputs, output):
    """A user's."""


@needs_openvino
def test_converted_networks_are_kept_by_their_weights(decoder, monkeypatch, tmp_path):
    """Whether an entry is read shows when it is replaced by another network's."""
    monkeypatch.setattr(module, "CACHE", tmp_path / "kept")
    other, x = copy.deepcopy(decoder), latents(2)
    other.decoder.layers[-1].weight.data.mul_(0.5)
    [first] = OpenVino().run(decode, decoder, x)
    [entry] = module.CACHE.iterdir()
    [second] = OpenVino().run(decode, other, x)
    assert not torch.equal(first, second)
    [another] = set(module.CACHE.iterdir()) - {entry}
    own = entry.read_bytes()
    entry.write_bytes(another.read_bytes())
    assert torch.equal(OpenVino().run(decode, decoder, x)[0], second)
    damaged = bytearray(own)
    damaged[len(own) // 2] ^= 1
    for content in (bytes(damaged), own[: len(own) // 2], b""):
        entry.write_bytes(content)
        with pytest.warns(UserWarning, match=r"cannot be read .*: converting again"):
            assert torch.equal(OpenVino().run(decode, decoder, x)[0], first)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(OpenVino().run(decode, decoder, x)[0], first)
    assert len(list(module.CACHE.iterdir())) == 2


@needs_openvino
def test_without_a_folder_to_write_to_it_converts_each_time(decoder, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CACHE", tmp_path / "a file" / "kept")
    (tmp_path / "a file").write_text("")
    with pytest.warns(UserWarning, match=r"cannot be kept in .*\n.*make that folder writable"):
        [found] = OpenVino().run(decode, decoder, latents(1))
    close(found, decoder.decode(latents(1)).sample)


@needs_openvino
def test_engine_precision_and_threads_are_part_of_the_identity(emoji, scorers, converted, its_scorers):
    assert differences(emoji.identity, converted.identity) == [
        "engine.class: nothing -> openvino.Core",
        "engine.dtype: nothing -> float32",
        "engine.threads: nothing -> 1",
    ]
    assert {line.split(": ")[0] for line in differences(described(scorers), described(its_scorers))} == {
        f"{part}.engine.{name}"
        for part in ("clip", "dino", "preference.matching.encoder")
        for name in ("class", "dtype", "threads")
    }
    torch.set_num_threads(2)
    try:
        assert OpenVino().identity["threads"] == 2
    finally:
        torch.set_num_threads(1)


@needs_openvino
def test_copies_of_the_engine_convert_again(converted, decoder):
    for other in (copy.deepcopy(converted.engine), pickle.loads(pickle.dumps(converted.engine))):
        assert other.identity == converted.engine.identity
        close(other.run(decode, decoder, latents(1))[0], decoder.decode(latents(1)).sample)


@needs_openvino
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_process_runs_one_thread_and_refuses_two(converted, decoder, threads):
    engine, x = OpenVino(), latents(1)
    wanted = engine.run(decode, decoder, x)[0]
    engine.threads = threads
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=answer_of, args=(answers, engine, decoder, x))
    child.start()
    found = answers.get()
    child.join(30)
    if threads == 1:
        assert found == wanted.tolist()
    else:
        assert found.startswith("OpenVINO with 2 threads was loaded before this process was forked")
        assert "\n  -> start processes with spawn" in found


def answer_of(answers, engine, network, x):
    try:
        answers.put(engine.run(decode, network, x)[0].tolist())
    except CapabilityError as error:
        answers.put(str(error))


@needs_openvino
@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bfloat16")
def test_bfloat16_is_near_where_the_processor_has_it(emoji, converted, prompts):
    backbone = load_backbone(EnvSettings(backbone_options=ON, dtype="bfloat16"))
    assert differences(converted.identity, backbone.identity) == ["engine.dtype: float32 -> bfloat16"]
    found, wanted = predicted(backbone, prompts).x0, predicted(emoji, prompts).x0
    assert 1e-4 < float((found - wanted).abs().max() / wanted.abs().max()) < 0.1
    assert torch.equal(predicted(backbone, prompts, slice(0, 1)).x0, found[:1])
    x0 = wanted.clamp(-3, 3)
    assert float((backbone.decode(x0) - emoji.decode(x0)).abs().max()) < 0.1
    images = emoji.decode(x0)
    scores, plain = (load_scorers(one).scores(images, prompts) for one in (backbone, converted))
    assert abs(scores.preference - plain.preference).max() < 0.3
    assert (scores.preference != plain.preference).any()


@needs_openvino
@pytest.mark.skipif(HAS_BF16, reason="this processor has bfloat16")
def test_bfloat16_is_refused_where_the_processor_lacks_it():
    with pytest.raises(ConfigError, match=r"this processor only has .*FP32.*\n  -> use dtype=float32"):
        EmojiBackbone.from_pretrained(Load(dtype="bfloat16", options=ON))


@needs_openvino
@pytest.mark.parametrize(
    ("load", "error", "message"),
    [
        (Load(dtype="float16", options=ON), ConfigError, r"engine=openvino has no dtype 'float16'\n  -> .*bfloat16"),
        (Load(device="meta", options=ON), ConfigError, "engine=openvino runs on the CPU, got device='meta'"),
    ],
    ids=["dtype", "device"],
)
def test_what_the_engine_lacks_is_refused(load, error, message):
    with pytest.raises(error, match=message):
        EmojiBackbone.from_pretrained(load)


class Eigenvalues(nn.Module):
    """OpenVINO has no such operation."""

    def forward(self, x):
        return torch.linalg.eigvals(x).real


def called(network, x):
    return (network(x),)


@needs_openvino
def test_a_network_that_cannot_be_converted_is_named():
    with pytest.raises(CapabilityError, match=r"Eigenvalues cannot be converted for OpenVINO: .*\n  -> load the back"):
        OpenVino().run(called, Eigenvalues(), torch.eye(3)[None])


@needs_openvino
def test_weights_that_are_not_finite_are_named():
    network = nn.Linear(2, 2).requires_grad_(False)
    network.weight[0, 0] = float("nan")
    with pytest.raises(NumericsError, match="Linear has NaN or infinity in weight\n"):
        OpenVino().run(called, network, torch.zeros(1, 2))


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    core.cache_clear()
    try:
        with pytest.raises(
            MissingPackageError, match=r"needs the package openvino.*\n  -> pip install 'addiffusion-env\[o"
        ):
            EmojiBackbone.from_pretrained(Load(options=ON))
    finally:
        core.cache_clear()


def test_an_unknown_engine_is_refused():
    with pytest.raises(UnknownNameError, match=r"unknown engine 'openvin'\n  -> did you mean 'openvino'\?"):
        EmojiBackbone.from_pretrained(Load(options={"engine": "openvin"}))
    with pytest.raises(AdDiffusionError, match="unknown engine 'True'"):
        EmojiBackbone.from_pretrained(Load(options={"engine": True}))

"""Every cache of docs/caches.md that is not of records or encoded texts: one thing changed, and it is not read."""

import copy
import functools
import json
import operator
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from addiffusion_env.agents.factory import make_rollouts
from addiffusion_env.agents.pipeline import AdaptivePipeline
from addiffusion_env.agents.policy_file import load_config, parse_config
from addiffusion_env.agents.training import hold_to_identity
from addiffusion_env.backbones.fingerprint import digest_of
from addiffusion_env.backbones.identity import described, results_digest
from addiffusion_env.engine.process import REFINE_PRESETS, ProcessConfig
from addiffusion_env.errors import ConfigError, ResumeError
from addiffusion_env.evaluation.manifest import Manifest, SamplerEntry
from addiffusion_env.scorers.image_scores import ImageScorers
from addiffusion_env.tabular.recorder import Recorder
from addiffusion_env.tabular.table import AttemptTable
from addiffusion_lab.measured import _images, metrics_sections
from addiffusion_lab.metrics import features
from addiffusion_lab.metrics.features import cache_key, load_features
from addiffusion_lab.metrics.settings import MetricSettings
from addiffusion_lab.vlm import make_client
from addiffusion_lab.vlm.judge import ReplyCache


@pytest.fixture
def other_emoji(emoji):
    """The emoji world with other denoiser weights."""
    backbone = copy.copy(emoji)
    unet = copy.deepcopy(emoji.denoiser)
    unet.conv_out.weight.data.mul_(0.9)
    backbone.parts, backbone.denoiser, backbone._texts = replace(emoji.parts, unet=unet), unet, copy.copy(emoji._texts)
    return backbone


def with_other_dino(scorers):
    dino = copy.copy(scorers.dino)
    dino.model = copy.deepcopy(dino.model)
    dino.model.layernorm.weight.data.mul_(0.9)
    return ImageScorers(scorers.clip, scorers.preference, dino)


def red(images, prompts):
    """A judge: images that are rather red."""
    return [bool(image[0].mean() > 0) for image in images]


def green(images, prompts):
    """Another."""
    return [bool(image[1].mean() > 0) for image in images]


TABLE = {
    "model": lambda recorder, other: replace(recorder, backbone=other),
    "scorer": lambda recorder, other: replace(recorder, scorers=with_other_dino(recorder.scorers)),
    "judge": lambda recorder, other: replace(recorder, judge=green),
    "no judge": lambda recorder, other: replace(recorder, judge=None),
    "schedule": lambda recorder, other: replace(recorder, process=replace(recorder.process, guidance_scale=3.0)),
    "solver's spacing": lambda recorder, other: replace(recorder, process=replace(recorder.process, spacing="leading")),
    "attempts": lambda recorder, other: replace(recorder, attempts=2),
    "features": lambda recorder, other: replace(recorder, features=True),
}


@pytest.fixture
def recorder(emoji, scorers):
    refine = replace(REFINE_PRESETS["resample_keep_best"], return_to=1)
    process = ProcessConfig(steps=2, decide_at=(1,), check_finished=True, refine=refine)
    return Recorder(emoji, scorers, process, 1, red)


@pytest.mark.parametrize("thing", TABLE)
def test_a_table_is_read_by_what_would_record_it_alone(thing, recorder, other_emoji):
    changed = TABLE[thing](recorder, other_emoji)
    assert changed.fingerprint != recorder.fingerprint == replace(recorder).fingerprint


def test_tables_of_two_models_lie_beside_each_other_and_are_not_joined(recorder, other_emoji, prompts, tmp_path):
    images = [(prompts[0], 0)]
    first = recorder.record_shards(images, tmp_path)
    second = replace(recorder, backbone=other_emoji).record_shards(images, tmp_path)
    assert len(list(tmp_path.glob("tries-*.parquet"))) == 2
    assert not np.allclose(first.preference, second.preference, equal_nan=True)
    kept = [AttemptTable.load(path) for path in sorted(tmp_path.glob("*.parquet"))]
    assert {digest_of(table.identity) for table in kept} == {digest_of(t.identity) for t in (first, second)}
    with pytest.raises(ConfigError, match=r"cannot be joined: backbone\.parts\.unet\.weights: [0-9a-f]{12} -> "):
        AttemptTable.join(kept)
    again = [(replace(prompts[0], requirements=None), 0)]  # the same id and seed, another question
    recorder.record_shards(again, tmp_path)
    assert len(list(tmp_path.glob("tries-*.parquet"))) == 3


ENV = {"steps": 2, "refine": "resample_short", "cost_per_nfe": 0.01, "prompts": ["a photo of a dog"]}


def checkpointed(folder: Path) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step_000000001.pt").write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": ["a photo of a cat"]}, r"prompts: [0-9a-f]{12} -> [0-9a-f]{12}"),
        ({"reward": "as_published"}, r"reward\.terms\.terminal_bonus"),
        pytest.param({"guidance_scale": 2.0}, r"process\.guidance_scale: 4\.0 -> 2\.0", marks=pytest.mark.slow),
        ({"backbone_options": {"truncate_prompts": True}}, r"backbone\.truncate_prompts: False -> True"),
    ],
)
def test_a_run_goes_on_only_with_what_began_it(change, words, tmp_path):
    """What is in the files that a configuration names counts too; the configuration itself is compared by itself."""
    first = hold_to_identity(tmp_path, make_rollouts({"kind": "local"}, 2, 0, ENV), True)
    checkpointed(tmp_path)
    assert hold_to_identity(tmp_path, make_rollouts({"kind": "local"}, 3, 0, ENV), True) == first
    with pytest.raises(ResumeError, match=words):
        hold_to_identity(tmp_path, make_rollouts({"kind": "local"}, 2, 0, {**ENV, **change}), True)
    assert json.loads((tmp_path / "identity.json").read_text()) == first


def test_a_removed_setting_without_effect_stops_no_run(tmp_path):
    env = make_rollouts({"kind": "local"}, 1, 0, ENV)
    older = hold_to_identity(tmp_path, env, True)
    checkpointed(tmp_path)
    older["reward"]["classes"]["terminal_bonus"]["relative"] = 0.0
    (tmp_path / "identity.json").write_text(json.dumps(older))
    hold_to_identity(tmp_path, env, True)
    older["reward"]["classes"]["terminal_bonus"]["relative"] = 1.0
    (tmp_path / "identity.json").write_text(json.dumps(older))
    with pytest.raises(ResumeError, match=r"terminal_bonus\.relative: 1\.0 -> nothing"):
        hold_to_identity(tmp_path, env, True)


def test_a_run_on_another_device_or_package_is_warned_of(tmp_path):
    env = make_rollouts({"kind": "local"}, 1, 0, ENV)
    hold_to_identity(tmp_path, env, True)
    checkpointed(tmp_path)
    text = (tmp_path / "identity.json").read_text().replace('"torch": "2', '"torch": "1')
    (tmp_path / "identity.json").write_text(text.replace('"device": "cpu"', '"device": "cuda"', 1))
    with pytest.warns(UserWarning, match=r"backbone\.device: cuda -> cpu; packages\.torch: 1"):
        hold_to_identity(tmp_path, env, True)
    (tmp_path / "identity.json").write_text("[")
    with pytest.raises(ResumeError, match="cannot read"):
        hold_to_identity(tmp_path, env, True)


def test_a_frontier_of_another_model_is_warned_of(emoji, scorers, other_emoji):
    pipe = AdaptivePipeline(emoji, "emoji", scorers=scorers)
    own = {"backbone": digest_of(described(emoji)), "scorers": digest_of(described(scorers))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.sampler.config = replace(pipe.sampler.config, identity={})
        pipe._with_cost(None, 2.5)  # an older policy without an identity
        pipe.sampler.config = replace(pipe.sampler.config, identity=own)
        pipe._with_cost(None, 2.5)
        for name in ("emoji", "emoji_rule"):  # what ships was measured with the model that ships
            AdaptivePipeline(emoji, name, scorers=scorers)._with_cost(None, 2.5)
    moved = AdaptivePipeline(other_emoji, pipe.sampler, scorers=with_other_dino(scorers))
    with pytest.warns(UserWarning, match="measured with another backbone and scorers"):
        moved._with_cost(None, 2.5)


def test_only_what_decides_results_is_in_their_digest(emoji):
    """A processor's last digits and a new attribute of the code are in the identity; weights and precision in both."""
    known = described(emoji)

    def changed(place, value):
        other = json.loads(json.dumps(known))
        *way, last = place.split(".")
        functools.reduce(operator.getitem, way, other)[last] = value
        assert digest_of(other) != digest_of(known)
        return results_digest(other) != results_digest(known)

    assert not changed("parts.scheduler.alphas_cumprod.content", "other last digits")
    assert not changed("added_by_a_refactoring", True)
    assert changed("parts.unet.weights", "fine-tuned")
    assert changed("parts.unet.adapter_scales", ["{'style': 0.5}"])
    assert changed("parts.vae.dtype", ["torch.bfloat16"])
    assert changed("parts.scheduler.config.prediction_type", "v_prediction")
    assert changed("parts.vae.config.scaling_factor", 0.2)
    assert changed("parts.tokenizer.vocabulary", "another")
    assert changed("parts.scheduler.class", "diffusers.DPMSolverMultistepScheduler")
    assert not changed("parts.scheduler.class", "diffusers.schedulers.moved.DDIMScheduler")
    assert changed("device", "cuda")
    assert changed("class", "addiffusion_env.PipelineBackbone")


def test_a_policys_file_keeps_what_its_frontier_was_measured_on():
    from addiffusion_env.agents.policy_file import PRETRAINED, config_text

    config = load_config(PRETRAINED / "emoji")
    assert set(config.identity) == {"backbone", "scorers"}
    kept = replace(config, identity={"backbone": "ab", "scorers": "cd"}, results=None)
    assert parse_config(json.loads(config_text(kept)), Path("x")).identity == kept.identity


def test_a_report_of_what_a_policy_was_before_is_not_what_it_is_now(tmp_path):
    import shutil

    from addiffusion_env.agents.policy_file import PRETRAINED, folder_digest, read_results

    policy, report = shutil.copytree(PRETRAINED / "emoji", tmp_path / "policy"), tmp_path / "report"
    (policy / "results.json").unlink()
    report.mkdir()
    row = {name: None for name in ("correct", "nfe", "preference", "seconds")} | {"sampler": "policy:x", "prompts": 2}
    (report / "summary.json").write_text(json.dumps({"samplers": [row], "focus": "policy:x"}))
    settings = {"judges": [], "benchmark": None, "prompt_source": "emoji", "seeds": [0], "policy": "runs/x"}
    sampler = {"name": "policy:x", "fingerprint": folder_digest(policy)}
    (report / "evaluation.json").write_text(json.dumps({"settings": settings, "samplers": [sampler]}))
    assert read_results(policy)["rows"][0]["sampler"] == "policy:x"
    config = policy / "config.json"
    config.write_text(config.read_text().replace('"highest_cost_per_nfe": 0.45', '"highest_cost_per_nfe": 0.46'))
    assert read_results(policy) is None


@pytest.mark.parametrize("change", [{"weights": "dino"}, {"features": "clip"}])
def test_reference_features_are_kept_by_network_and_images(change, tmp_path):
    network = load_features(MetricSettings(features="dino"))
    assert network.identity == load_features(MetricSettings(features="dino")).identity
    if "weights" in change:
        import shutil

        from safetensors.torch import load_file, save_file

        from addiffusion_env.backbones.emoji import WEIGHTS, verify

        folder = shutil.copytree(verify(WEIGHTS, "dino"), tmp_path / "dino")
        path = folder / "model.safetensors"
        save_file({name: value * 0.9 for name, value in load_file(path).items()}, path)
        change = {"weights": str(folder)}
    other = load_features(MetricSettings(**{"features": "dino", **change}))
    from addiffusion_lab.metrics.images import Images

    images = Images.of(torch.zeros(2, 3, 64, 64))
    assert cache_key(images, network) != cache_key(images, other)


def test_reference_features_are_kept_by_package(monkeypatch):
    before = load_features(MetricSettings(features="dino")).identity
    monkeypatch.setattr(
        features, "identity_of", lambda **parts: {**described(parts), "packages": {"transformers": "9"}}
    )
    assert load_features(MetricSettings(features="dino")).identity != before


REPLY = {
    "model": ("openai:other", {}, "p", "a", "b"),
    "server": ("openai:qwen", {"base_url": "http://elsewhere:8000/v1"}, "p", "a", "b"),
    "path behind a gateway": ("openai:qwen", {"base_url": "http://localhost:8000/team/v1"}, "p", "a", "b"),
    "longest reply": ("openai:qwen", {"max_output_tokens": 9}, "p", "a", "b"),
    "prompt": ("openai:qwen", {}, "q", "a", "b"),
    "image": ("openai:qwen", {}, "p", "c", "b"),
    "order": ("openai:qwen", {}, "p", "b", "a"),
}


@pytest.mark.parametrize("thing", REPLY)
def test_a_reply_is_read_for_its_own_question_alone(thing, monkeypatch):
    base = {"base_url": "http://localhost:8000/v1"}
    spec, options, *asked = REPLY[thing]
    first = ReplyCache.key(make_client("openai:qwen", **base), "p", "a", "b")
    assert ReplyCache.key(make_client("openai:qwen", **base), "p", "a", "b") == first
    assert ReplyCache.key(make_client(spec, **{**base, **options}), *asked) != first


def manifest_of(*samplers: str, **changes) -> Manifest:
    entries = tuple(SamplerEntry(name, variant, {}) for name, variant in (m.split("=") for m in samplers))
    return Manifest(entries, "emoji", ("p",), "", (0,), (), 0.02, {}, {}, **{"identity": {"backbone": 1}, **changes})


@pytest.mark.parametrize(
    ("manifest", "shown"),
    [
        (manifest_of("a=1", "b=2"), True),
        (manifest_of("a=1", "b=2", "c=3"), True),
        (manifest_of("a=1", "b=9"), False),
        (replace(manifest_of("a=1", "b=2"), seeds=(1,)), False),
        (replace(manifest_of("a=1", "b=2"), prompt_keys=("q",)), False),
    ],
    ids=["the same", "one more sampler", "another model", "other seeds", "other prompts"],
)
def test_what_was_measured_on_other_images_is_not_reported(manifest, shown, tmp_path):
    measured = manifest_of("a=1", "b=2")
    value = {"name": "psnr", "value": 30.0, "spread": None, "higher_is_better": True, "n": 1, "backend": "own"}
    row = {**value, "settings": {}, "notes": []}
    kept = {"reference": "b", "samplers": {"a": {"psnr": row}}, "images": _images(measured)}
    (tmp_path / "metrics.json").write_text(json.dumps(kept))
    assert [section.title for section in metrics_sections(tmp_path, manifest)] == ["Metrics"] * shown
    del kept["images"]  # of an older version: only valid with a manifest of that version
    (tmp_path / "metrics.json").write_text(json.dumps(kept))
    assert metrics_sections(tmp_path, manifest) == []
    assert len(metrics_sections(tmp_path, replace(manifest, identity={}))) == 1


def test_the_page_of_caches_names_every_cache():
    """What keeps something on the disk or from one call to the next is listed, by the file that holds it."""
    root = Path(__file__).parents[2]
    page = (root / "docs" / "caches.md").read_text(encoding="utf-8")
    kept = r"lru_cache|functools\.cache\b|(?<!Dict\()OrderedDict\(|LruCache\(|WeakKeyDictionary"
    keeping = re.compile(kept + r"|class (?:Record|Reply|Feature)\w*(?:Cache|Store)\b")
    places = {
        path.relative_to(root).as_posix()
        for path in (root / "addiffusion_env").rglob("*.py")
        if keeping.search(path.read_text(encoding="utf-8"))
    }
    assert sorted(place for place in places if place not in page) == []

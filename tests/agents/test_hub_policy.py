"""Policies by name: saved, pushed to a hub over HTTP, found in its cache, exported to and from SB3's zip files."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import serving
from stable_baselines3 import PPO

from addiffusion_env import AdaptivePipeline
from addiffusion_env.__main__ import main
from addiffusion_env.agents.hub_policy import named_policy
from addiffusion_env.agents.learned import PolicySampler, load_sampler
from addiffusion_env.agents.make import make_policy
from addiffusion_env.agents.policy_file import PRETRAINED, find_policy, folder_digest, read_results
from addiffusion_env.agents.sb3_zip import DETAILS_FILE, export_zip, import_zip
from addiffusion_env.errors import AdDiffusionError, ConfigError, UntrustedFileError, WeightsError
from addiffusion_env.evaluation.statistics import share_interval

ROOT = Path(__file__).parents[2]
EMOJI = PRETRAINED / "emoji"


@pytest.fixture(scope="module")
def policy():
    return make_policy("emoji")


def same(one, two):
    ours, theirs = one.policy.state_dict(), two.policy.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# ---- folders


def test_a_saved_policy_is_the_same_policy(policy, tmp_path):
    (tmp_path / "README.md").write_text("an older card")
    policy.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["README.md", "config.json", "policy.safetensors"]
    again = make_policy(tmp_path)
    same(again, policy)
    assert again.config == policy.config
    assert "an older card" not in (tmp_path / "README.md").read_text()


def test_the_card_says_what_was_measured_and_by_which_command(policy, tmp_path):
    from huggingface_hub import ModelCard

    policy.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "addiffusion" and card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "text-to-image" and "stable-baselines3" in card.data.tags
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    first = policy.config.results["rows"][0]
    assert results == {name: first[name]["estimate"] for name in ("correct", "nfe")}
    for words in (
        f"| {first['sampler']} | {shown(first['correct'])} | {first['nfe']['estimate']:.2f} |",
        policy.config.results["command"],
        "| {:.4g} | {:.2f} |".format(*policy.config.frontier[1]),
        f"- decisions: `{policy.config.provenance['decisions']}`",
        '"decide_every"',
    ):
        assert words in card.text


def shown(share):
    """A share with its interval, as cards and pages print it."""
    return f"{share['estimate']:.3f} [{share['low']:.3f}, {share['high']:.3f}]"


def test_the_shipped_results_hold_together():
    """Every share is a whole number of 1,024 images with Wilson's interval; a higher cost per NFE spends less."""
    rows = read_results(EMOJI)["rows"]
    assert len(rows) > 4
    for row in rows:
        share = row["correct"]
        images = round(share["estimate"] * 1024)
        interval = share_interval(np.arange(1024) < images)
        found = (interval.estimate, interval.low, interval.high)
        assert (share["estimate"], share["low"], share["high"]) == pytest.approx(found, abs=5.1e-4), row["sampler"]
    costs_per_nfe = [float(row["sampler"].partition("@")[2]) for row in rows]
    spent = [row["nfe"]["estimate"] for row in rows]
    assert costs_per_nfe == sorted(costs_per_nfe) and spent == sorted(spent, reverse=True)


def test_what_tells_of_a_policy_is_not_part_of_its_digest(tmp_path):
    shutil.copytree(EMOJI, tmp_path / "policy")
    before = folder_digest(tmp_path)
    (tmp_path / "policy" / "README.md").write_text("a card")
    (tmp_path / "policy" / "results.json").unlink()
    assert folder_digest(tmp_path) == before
    (tmp_path / "policy" / "config.json").write_text("{}")
    assert folder_digest(tmp_path) != before


def test_a_runs_folder_has_a_config_of_its_own(tmp_path):
    shutil.copytree(EMOJI, tmp_path / "policy")
    (tmp_path / "config.json").write_text(json.dumps({"algorithm": "ppo"}))
    assert find_policy(tmp_path) == tmp_path / "policy"
    pipe = AdaptivePipeline.from_pretrained(tmp_path, policy="fixed:2")  # on the model of that run's policy
    assert pipe.backbone.name == "emoji"


def test_results_of_a_runs_report_come_along(tmp_path):
    shutil.copytree(EMOJI, tmp_path / "policy", ignore=shutil.ignore_patterns("results.json"))
    assert read_results(tmp_path / "policy") is None
    report = tmp_path / "report"
    report.mkdir()
    figure = {"estimate": 0.5, "low": 0.4, "high": 0.6, "level": 0.95, "n": 64}
    row = {"prompts": 64, "correct": figure, "nfe": figure, "preference": figure, "seconds": figure}
    samplers = [{"sampler": "fixed:4", **row}, {"sampler": "policy:x@0.01", **row}]
    (report / "summary.json").write_text(json.dumps({"samplers": samplers, "focus": "policy:x@0.01"}))
    settings = {"policy": "runs/x", "benchmark": None, "prompt_source": "emoji", "seeds": [0], "judges": ["d"]}
    (report / "evaluation.json").write_text(json.dumps({"settings": settings}))
    found = make_policy(tmp_path).config.results
    assert [line["sampler"] for line in found["rows"]] == ["policy:x@0.01", "fixed:4"]
    assert found["command"] == "python eval_sb3.py policy=runs/x prompts=64"
    assert found["about"] == "64 prompts of emoji, seeds [0], judged by d. Seconds are wall clock."


def test_a_policy_of_another_version_is_refused(tmp_path):
    shutil.copytree(EMOJI, tmp_path / "policy")
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    path = tmp_path / "policy" / "config.json"
    path.write_text(json.dumps({**config, "format": 2}))
    with pytest.raises(WeightsError, match="is not a policy of format 1"):
        make_policy(tmp_path)
    path.write_text(json.dumps({**config, "frontiers": []}))
    with pytest.raises(ConfigError, match="has no setting 'frontiers'\n  -> did you mean 'frontier'"):
        make_policy(tmp_path)


# ---- the hub


def test_pushed_and_downloaded_over_http(policy, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_secret")
    with serving(monkeypatch) as hub:
        url = AdaptivePipeline.from_pretrained("emoji").push_to_hub("someone/emoji-policy")
        assert url.startswith(f"{hub.url}/someone/emoji-policy/commit/")
        assert set(hub.repos["someone/emoji-policy"][-1]) == {"README.md", "config.json", "policy.safetensors"}
        again = load_sampler(named_policy("someone/emoji-policy", cache_dir=tmp_path))
        same(again, policy)
        assert again.config == policy.config
        with pytest.raises(WeightsError, match="no such repository"):
            named_policy("someone/another", cache_dir=tmp_path)
        hub.repos["someone/model"] = [{"model_index.json": b'{"_class_name": "FluxPipeline"}', "config.json": b"{}"}]
        with pytest.raises(WeightsError, match=r"someone/model is a model .*pipeline.*\n  -> pass a policy"):
            named_policy("someone/model", cache_dir=tmp_path)
        hub.refuse = True
        with pytest.raises(
            WeightsError, match=r"cannot be pushed to someone/emoji-policy: HfHubHTTPError.*\n  -> run `hf auth"
        ):
            policy.push_to_hub("someone/emoji-policy")
    # What was downloaded is there without network.
    offline = AdaptivePipeline.from_pretrained("someone/emoji-policy", cache_dir=tmp_path)
    assert isinstance(offline.sampler, PolicySampler) and offline.backbone.name == "emoji"


def test_offline_a_hub_id_says_where_it_looked(tmp_path):
    with pytest.raises(
        WeightsError, match=r"someone/emojy is neither a folder .*models--someone--emojy.*HF_HUB_OFFLINE"
    ):
        AdaptivePipeline.from_pretrained("someone/emojy", cache_dir=tmp_path)
    with pytest.raises(ConfigError, match="no setting 'revison'\n  -> did you mean 'revision'"):
        AdaptivePipeline.from_pretrained("someone/emojy", revison="main")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./none", "no such folder: ./none"),
        ("/none/at/all", "no such folder: /none/at/all"),
        ("fixd:3", "unknown sampler 'fixd'\n  -> did you mean 'fixed'"),
        ("fixed", "lacks its numbers"),
    ],
)
def test_mistyped_policies(name, message):
    with pytest.raises(AdDiffusionError, match=message):
        make_policy(name)


def test_a_folder_without_a_policy_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"holds no policy.*policy\.safetensors"):
        named_policy(tmp_path)


def test_a_policy_without_learning_has_nothing_to_save(tmp_path):
    pipe = AdaptivePipeline.from_pretrained("emoji", policy="fixed:2")
    with pytest.raises(ConfigError, match="policy 'fixed:2' has no weights to save"):
        pipe.save_pretrained(tmp_path)


# ---- SB3's zip files


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("zip") / "policy.zip"
    main(["export", "emoji", str(path)])
    return path


def test_the_zip_is_sb3s_own(exported, policy):
    from sb3_contrib import MaskablePPO

    model = MaskablePPO.load(exported, device="cpu")
    assert model.num_timesteps == policy.config.provenance["decisions"]
    rng = np.random.default_rng(0)
    seen = {
        key: rng.uniform(box.low, box.high, (5, *box.shape)).astype(np.float32)
        for key, box in policy.config.space().spaces.items()
    }
    tensors = {key: torch.as_tensor(value) for key, value in seen.items()}
    with torch.no_grad():
        wanted = policy.policy.get_distribution(tensors).distribution.probs.argmax(1).numpy()
    np.testing.assert_array_equal(model.predict(seen, deterministic=True)[0], wanted)


def test_the_zip_comes_back_as_the_policy(exported, policy, tmp_path):
    again = import_zip(exported, trust=True)
    same(again, policy)
    assert again.config == policy.config
    plain = tmp_path / "model.zip"  # as model.save() writes it
    with zipfile.ZipFile(exported) as source, zipfile.ZipFile(plain, "w") as target:
        for name in source.namelist():
            if name != DETAILS_FILE:
                target.writestr(name, source.read(name))
    with pytest.raises(ConfigError, match="does not say which environment"):
        import_zip(plain, trust=True)
    told = import_zip(plain, environment=policy.config.environment, trust=True)
    same(told, policy)
    assert told.config.observation == policy.config.observation and told.config.highest_cost_per_nfe == 0.45


def test_a_zip_is_read_only_on_trust(exported):
    with pytest.raises(UntrustedFileError, match="unpickles Python objects, which can run any code"):
        import_zip(exported)


def test_zips_that_are_no_policy_of_ours(tmp_path):
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    with pytest.raises(WeightsError, match="no readable zip of Stable-Baselines3"):
        import_zip(tmp_path / "broken.zip", trust=True)
    PPO("MlpPolicy", "CartPole-v1", n_steps=2, batch_size=2, device="cpu").save(tmp_path / "other.zip")
    with pytest.raises(
        ConfigError, match="the ActorCriticPolicy model was trained on observations that no environment"
    ):
        import_zip(tmp_path / "other.zip", trust=True)
    with pytest.raises(WeightsError, match="no policy 'emojy'"):
        export_zip("emojy", tmp_path / "out.zip")

"""Who has used which scorer, and what an evaluation's manifest says of it and of its margin."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.manifest import Manifest, MarginEntry, MethodEntry
from addiffusion_lab.claims.conflicts import Use, settle, uses_in, uses_of
from addiffusion_lab.claims.setup import claims_of, judge_evaluation, margin_in

POLICY = "policy:emoji@0.01"
BARE = {"observation_keys": ["timestep"], "refine": "off"}


def scorers_of(environment, **more):
    settings = {"backbone": "emoji", "scorers": None, **more}
    found = uses_of([POLICY], [POLICY], {POLICY: environment}, settings["backbone"], settings["scorers"])
    return {use.scorer for use in found}


def manifest(methods=(POLICY, "fixed:8"), **changes):
    fields = {
        "methods": tuple(MethodEntry(name, name, name == POLICY, {}) for name in methods),
        "backbone": "emoji",
        "prompt_ids": ("p0000",),
        "prompts_digest": "",
        "seeds": (0,),
        "margins": (MarginEntry(0.01, "2026-11-01T00:00:00+00:00", 0),),
        "price": 0.02,
        "settings": {"policy": None, "judges": ["emoji_detector"]},
        "versions": {},
    }
    return Manifest(**{**fields, **changes})


def test_a_reward_pays_by_the_scorers_of_its_terms():
    assert scorers_of({**BARE, "reward": "default"}) == {"blip_preference"}  # clip_gain has weight 0
    assert scorers_of({**BARE, "reward": "as_published"}) == {"blip_preference", "clip", "dino"}
    assert scorers_of({**BARE, "reward": {"clip_gain": 1.0}}) == {"clip"}
    assert scorers_of({**BARE, "reward": {"nfe_price": 1.0}}) == set()
    assert scorers_of({**BARE, "reward": "default"}, backbone="sd15") == {"image_reward"}
    package = {"preference": "image_reward_package"}  # the same model in another implementation
    assert scorers_of({**BARE, "reward": "default", "scorers": package}, backbone="sd15") == {"image_reward"}


def test_what_a_policy_sees_or_keeps_by_counts_as_well():
    priced = {"reward": {"nfe_price": 1.0}}
    assert scorers_of({**priced, "refine": "off"}) == {"blip_preference", "clip", "dino"}  # it sees all three
    assert scorers_of({**priced, **BARE, "refine": {"preset": "weakest"}}) == {"blip_preference"}
    assert scorers_of({**priced, **BARE, "refine": {"preset": "weakest", "accept": "always"}}) == set()


def test_methods_without_a_policy_file_are_known_by_their_kind():
    names = ["fixed:8", "best_of:2x3", "threshold_retry:0.5", "oracle_stop:clip_score", "random:0.1", "rule:x"]
    found = {use.method: use for use in uses_of(names, ["random:0.1"], {}, "emoji")}
    assert set(found) == {"best_of:2x3", "threshold_retry:0.5", "oracle_stop:clip_score"}
    assert found["best_of:2x3"].scorer == "blip_preference"
    assert found["oracle_stop:clip_score"].scorer == "clip"
    unknown = uses_of(["other:1"], ["other:1"], {}, "sd15")
    assert {use.scorer for use in unknown} == {"image_reward", "clip", "dino"}  # the worst is assumed


def test_conflicts_are_named_with_a_judge_to_add():
    uses = uses_of([POLICY, "best_of:2x3"], [POLICY], {POLICY: {"reward": "default"}}, "emoji")
    with pytest.raises(ConfigError) as caught:
        settle(["preference", "clip"], uses, "emoji")
    assert "its reward term terminal_bonus pays by it" in caught.value.cause
    assert "clip_score (policy:emoji@0.01: it sees it" in caught.value.cause
    assert "best_of:2x3: it keeps the try" in caught.value.cause
    assert "judges=[emoji_detector]" in caught.value.remedy
    with pytest.raises(ConfigError) as hub:
        settle(["image_reward_package"], [Use("image_reward", POLICY, "x"), Use("hps", "b", "y")], "sd15")
    assert "judges=[aesthetic]" in hub.value.remedy
    with pytest.raises(ConfigError, match="no judge was named"):
        settle([], uses, "emoji")
    roles = settle(["preference", "hps", "emoji_detector"], uses, "emoji")
    assert roles.independent == ("hps", "correct")
    assert list(roles.conflicted) == ["preference"]


def test_the_policy_file_says_what_it_was_paid_by(tmp_path):
    settings = {"policy": str(tmp_path / "gone"), "judges": ["preference"]}
    lost = uses_in(manifest(settings=settings))
    assert {use.how for use in lost} == {"it looks, and its policy file is not at hand"}
    folder = tmp_path / "emoji" / "policy"
    folder.mkdir(parents=True)
    config = {
        "format": 1,
        "environment": {**BARE, "reward": {"clip_gain": 1.0}},
        "observation": {"timestep": [-1.0, 128]},
        "net_arch": {"pi": [4], "vf": [4]},
        "highest_price": 0.1,
        "default_price": 0.01,
        "frontier": [],
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "policy.safetensors").touch()  # what tells a policy's folder; the weights are not read here
    for named in (tmp_path / "emoji", folder):
        found = uses_in(manifest(settings={**settings, "policy": str(named)}))
        assert found == (Use("clip", POLICY, "its reward term clip_gain pays by it"),)


def test_a_margin_keeps_its_history(tmp_path):
    config = tmp_path / "eval.yaml"
    config.write_text("policy: null\nmargin: 0.01   # of non-inferiority\n")
    found = margin_in(manifest(), "correct", config)
    assert (found.value, found.source, found.before_data) == (0.01, f"{config}:2", True)
    assert found.dated_by == "file time"
    early, late = MarginEntry(0.01, "2026-11-01T00:00:00+00:00", 0), MarginEntry(0.05, "2026-11-02T00:00:00+00:00", 9)
    changed = margin_in(manifest(margins=(early, late)), "correct", config)
    assert (changed.value, changed.records_before, changed.dated_by) == (0.05, 9, "evaluation.json")
    assert changed.source == "given to the run instead of eval.yaml's"
    back = margin_in(manifest(margins=(early, late, replace(early, records_before=20))), "correct")
    assert back.before_data


def test_claims_find_the_policy_and_its_curve():
    names = ["policy:a@0.01,shuffled", "policy:a@0.01", "policy:a@0.02", "policy:b@0.01", "fixed:8"]
    found = claims_of(names, {"no_refine": ["policy:b@0.01"], "kinds": ["fixed"]})
    assert found.points == ("policy:a@0.01", "policy:a@0.02")
    assert found.kinds == ("fixed",)
    assert claims_of(names, {"policy": "policy:b@0.01"}).points == ("policy:b@0.01",)
    assert claims_of(names, {"curve": []}).points == ("policy:a@0.01",)
    with pytest.raises(ConfigError, match="did you mean 'nfe_limit'"):
        claims_of(names, {"nfe_limits": 7})
    with pytest.raises(ConfigError, match="none was evaluated"):
        claims_of(["fixed:8"], {})


def test_an_evaluation_without_a_held_out_judge_is_refused():
    with pytest.raises(ConfigError, match="no judge is independent"):
        judge_evaluation([], manifest(settings={"policy": None, "judges": ["preference"]}), {})


def test_the_machine_is_named_with_its_instruction_set():
    """In a process of its own: torch reads the variable once."""
    code = "from addiffusion_env.evaluation.manifest import versions; print(versions()['machine'])"
    plain = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(f"{os.cpu_count()} cores, default")

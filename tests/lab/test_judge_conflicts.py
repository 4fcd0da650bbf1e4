"""Who has used which scorer, and what an evaluation's manifest says of it and of its margin."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from addiffusion_env.agents.learned import scores_used
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.manifest import Manifest, MarginEntry, SamplerEntry
from addiffusion_env.samplers import named_traits
from addiffusion_env.samplers.traits import Traits
from addiffusion_lab.claims.conflicts import Use, settle, uses_of
from addiffusion_lab.claims.setup import claims_of, judge_evaluation, margin_in

POLICY = "policy:emoji@0.01"
BARE = {"observation_keys": ["timestep"], "refine": "off"}


def scorers_of(environment, backbone="emoji"):
    traits = Traits(learned=True, scores_used=scores_used(EnvSettings.of(**{"backbone": backbone, **environment})))
    return {use.scorer for use in uses_of({POLICY: traits}, backbone)}


def named(*names):
    return {name: named_traits(name) for name in names}


def manifest(samplers=(POLICY, "fixed:8"), **changes):
    fields = {
        "samplers": tuple(SamplerEntry(name, name, {}) for name in samplers),
        "backbone": "emoji",
        "prompt_ids": ("p0000",),
        "prompts_digest": "",
        "seeds": (0,),
        "margins": (MarginEntry(0.01, "2026-11-01T00:00:00+00:00", 0),),
        "cost_per_nfe": 0.02,
        "settings": {"policy": None, "judges": ["emoji_detector"]},
        "versions": {},
    }
    return Manifest(**{**fields, **changes})


def test_a_reward_pays_by_the_scorers_of_its_terms():
    assert scorers_of({**BARE, "reward": "default"}) == {"emoji_preference"}  # clip_gain has weight 0
    assert scorers_of({**BARE, "reward": "as_published"}) == {"emoji_preference", "clip", "dino"}
    assert scorers_of({**BARE, "reward": {"clip_gain": 1.0}}) == {"clip"}
    assert scorers_of({**BARE, "reward": {"nfe_cost": 1.0}}) == set()
    assert scorers_of({**BARE, "reward": "default"}, backbone="sd15") == {"image_reward"}
    package = {"preference": "image_reward_package", "image_reward": "/some/folder"}  # the same model elsewhere
    assert scorers_of({**BARE, "reward": "default", "scorers": package}, backbone="sd15") == {"image_reward"}


def test_what_a_policy_sees_or_keeps_by_counts_as_well():
    with_cost = {"reward": {"nfe_cost": 1.0}}
    assert scorers_of({**with_cost, "refine": "off"}) == {"emoji_preference", "clip", "dino"}  # it sees all three
    assert scorers_of({**with_cost, **BARE, "refine": {"preset": "weakest"}}) == {"emoji_preference"}
    assert scorers_of({**with_cost, **BARE, "refine": {"preset": "weakest", "accept": "always"}}) == set()


def test_samplers_without_a_policy_file_are_known_by_their_kind():
    names = ["fixed:8", "best_of:2x3", "threshold_resample:0.5", "oracle_stop:clip_score", "random:0.1", "stop:3"]
    names += ["interval:fixed:6", "interval:best_of:2x2", "prompt_rule:8,6", "continue"]
    found = {use.sampler: use for use in uses_of(named(*names), "emoji")}
    assert set(found) == {"best_of:2x3", "threshold_resample:0.5", "oracle_stop:clip_score", "interval:best_of:2x2"}
    assert found["best_of:2x3"].scorer == "emoji_preference"
    assert found["oracle_stop:clip_score"].scorer == "clip"
    unknown = uses_of(named("other:1"), "sd15")
    assert {use.scorer for use in unknown} == {"image_reward", "clip", "dino"}  # the worst is assumed


def test_conflicts_are_named_with_a_judge_to_add():
    policy = Traits(learned=True, scores_used=scores_used(EnvSettings.of(reward="default")))
    uses = uses_of({POLICY: policy, **named("best_of:2x3")}, "emoji")
    with pytest.raises(ConfigError) as caught:
        settle(["preference", "clip"], uses, "emoji")
    assert "its reward term terminal_bonus pays by it" in caught.value.cause
    assert "clip_score (policy:emoji@0.01: it observes it" in caught.value.cause
    assert "best_of:2x3: it keeps the attempt" in caught.value.cause
    assert "judges=[emoji_detector]" in caught.value.remedy
    with pytest.raises(ConfigError) as hub:
        settle(["image_reward_package"], [Use("image_reward", POLICY, "x"), Use("hps", "b", "y")], "sd15")
    assert "judges=[aesthetic]" in hub.value.remedy
    with pytest.raises(ConfigError, match="no judge was given"):
        settle([], uses, "emoji")
    roles = settle(["preference", "hps", "emoji_detector"], uses, "emoji")
    assert roles.independent == ("hps", "correct")
    assert list(roles.conflicted) == ["preference"]


def test_a_policy_that_sees_only_the_denoiser_has_used_only_what_paid_it():
    seen = {"reward": {"nfe_cost": 1.0}, "refine": "off"}
    assert scorers_of({**seen, "observation_keys": "denoiser"}) == set()
    assert scorers_of({**seen, "observation_keys": "denoiser_checked"}) == {"emoji_preference"}  # of finished images
    assert scorers_of({**seen, "observation_keys": ["timestep", "phrases", "prompt"]}) == set()
    both = {"preset": "resample_keep_best", "utility": {"clip_weight": 0.5}}
    assert scorers_of({**seen, "refine": both, "observation_keys": "denoiser"}) == {"emoji_preference", "clip"}


def test_the_manifest_says_what_a_policy_was_paid_by_when_its_file_is_gone():
    environment = EnvSettings.of(**BARE, reward={"clip_gain": 1.0})
    entry = SamplerEntry(POLICY, POLICY, {}, traits=Traits(learned=True, scores_used=scores_used(environment)))
    assert SamplerEntry.read(json.loads(json.dumps(asdict(entry)))) == entry
    uses = uses_of((found := replace(manifest(), samplers=(entry,))).traits, found.backbone)
    assert uses == (Use("clip", POLICY, "its reward term clip_gain pays by it"),)


def test_an_older_manifest_goes_by_the_names_that_it_has():
    older = SamplerEntry.read({"name": POLICY, "variant": "v", "looks": False, "process": {}})
    assert older.traits.learned and not older.traits.needs_preview and older.traits.curve == "policy:emoji"
    uses = uses_of((found := replace(manifest(), samplers=(older,))).traits, found.backbone)
    assert {(use.scorer, use.how) for use in uses} == {
        (scorer, "its policy file is not available") for scorer in ("emoji_preference", "clip", "dino")
    }


def test_a_margin_keeps_its_history():
    early, late = MarginEntry(0.01, "2026-11-01T00:00:00+00:00", 0), MarginEntry(0.05, "2026-11-02T00:00:00+00:00", 9)
    found = margin_in(manifest(margins=(early,)), "correct")
    assert (found.value, found.measure, found.before_data) == (0.01, "correct", True)
    changed = margin_in(manifest(margins=(early, late)), "correct")
    assert (changed.value, changed.records_before, changed.before_data) == (0.05, 9, False)
    back = margin_in(manifest(margins=(early, late, replace(early, records_before=20))), "correct")
    assert back.value == 0.01 and back.before_data


def test_claims_find_the_policy_and_its_curve():
    names = named("policy:a@0.01,shuffled", "policy:a@0.01", "policy:a@0.02", "policy:b@0.01", "fixed:8")
    found = claims_of(names, {"no_refine": ["policy:b@0.01"], "kinds": ["fixed"]})
    assert found.points == ("policy:a@0.01", "policy:a@0.02")
    assert found.kinds == ("fixed",)
    assert claims_of(names, {"policy": "policy:b@0.01"}).points == ("policy:b@0.01",)
    assert claims_of(names, {"curve": []}).points == ("policy:a@0.01",)
    with pytest.raises(ConfigError, match="did you mean 'nfe_limit'"):
        claims_of(names, {"nfe_limits": 7})
    with pytest.raises(ConfigError, match="none was evaluated"):
        claims_of(named("fixed:8"), {})


def test_an_evaluation_without_a_held_out_judge_is_refused():
    with pytest.raises(ConfigError, match="no judge is independent"):
        judge_evaluation([], manifest(settings={"policy": None, "judges": ["preference"]}), {})


@pytest.mark.slow
def test_the_machine_is_named_with_its_instruction_set():
    """In a separate process: torch reads the variable once."""
    code = "from addiffusion_env.evaluation.manifest import versions; print(versions()['machine'])"
    plain = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(f"{os.cpu_count()} cores, default")

"""experiment=hypotheses as a user runs it: its plan, its refusals, its verdicts, and that a kill changes nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from eval_records import record

import eval_sb3
from addiffusion_env.agents.policy_file import find_policy, load_config
from addiffusion_env.config import check_overrides, compose_config
from addiffusion_env.errors import ConfigError, UnknownNameError
from addiffusion_env.evaluation.choices import make_samplers, out_folder
from addiffusion_env.evaluation.cost import RunCost, Stage, Work
from addiffusion_env.evaluation.manifest import Manifest, SamplerEntry
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.samplers import make_sampler, named_traits
from addiffusion_env.samplers.traits import Traits
from addiffusion_lab.claims import HYPOTHESES
from addiffusion_lab.claims.conflicts import uses_of
from addiffusion_lab.claims.setup import check_claims, claims_of

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
SMALL = (
    "experiment=hypotheses",
    "prompts=6",
    "costs_per_nfe=[0.004]",
    "filmstrips=false",
    "shard_size=3",
    "max_lanes=3",
)
FEW = "samplers=['policy:emoji@0.004,shuffled','policy:emoji@0.004,no_refine',fixed:2,fixed:3]"


def composed(*overrides):
    from omegaconf import OmegaConf

    return OmegaConf.to_container(compose_config(CONFIGS, "eval", overrides), resolve=True)


def command(*arguments):
    return [sys.executable, str(ROOT / "eval_sb3.py"), *arguments, "progress_bar=false"]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def manifest_of(names, **settings):
    entries = tuple(SamplerEntry(name, name, {}, traits=Traits.of(make_sampler(name))) for name in names)
    given = {"policy": "emoji", "judges": ["emoji_detector"], "hypotheses": {}, **settings}
    return Manifest(entries, "emoji", ("p",), "", (0,), (), 0.02, given, {})


def test_the_experiment_has_all_that_the_claims_need():
    config = composed("experiment=hypotheses")
    samplers = make_samplers(config)[0]
    traits = {sampler.name: Traits.of(sampler) for sampler in samplers}
    claims = claims_of(traits, config["hypotheses"])
    cost_per_nfe = round(
        load_config(find_policy("emoji")).cost_per_nfe_for(2.4), 6
    )  # chosen on training prompts, by rule
    assert 0.1 < cost_per_nfe < 0.4
    assert claims.policy == f"policy:emoji@{cost_per_nfe:g}"
    assert claims.shuffled == f"{claims.policy},shuffled"
    assert claims.no_refine == (f"{claims.policy},no_refine",)
    assert len(claims.checked) == 4 and set(claims.checked) <= set(traits)
    assert len(claims.points) == 4
    assert set(claims.kinds) <= {own.kind for own in traits.values()}
    assert claims.reference in traits
    assert claims.nfe_limit == 3.0
    assert check_claims(samplers, "emoji", config) == claims


def test_another_policy_brings_its_own_controls():
    config = composed("experiment=hypotheses", "policy=addiffusion_env/agents/pretrained/emoji")
    assert config["samplers"][0] == "policy:addiffusion_env/agents/pretrained/emoji@2.4nfe,shuffled"


def test_a_policy_trained_without_refinement_takes_the_place_of_the_masked_one():
    names = ["policy:a@0.01", "policy:a@0.02", "policy:a@0.01,no_refine", "policy:b@0.01", "policy:b@0.02", "fixed:8"]
    claims = claims_of({name: named_traits(name) for name in names}, {"trained_without": "runs/b/policy"})
    assert claims.points == ("policy:a@0.01", "policy:a@0.02")
    assert claims.no_refine == ("policy:b@0.01", "policy:b@0.02")
    assert claims.refine_controls == {"the policy with refine masked": ("policy:a@0.01,no_refine",)}


def test_a_shipped_policy_is_known_by_what_paid_it():
    found = manifest_of(["policy:emoji@0.004", "policy:emoji@0.004,shuffled"])
    uses = uses_of(found.traits, found.backbone)
    assert {use.scorer for use in uses if "pays by it" in use.how} == {"emoji_preference", "clip"}
    assert {use.sampler for use in uses} == {"policy:emoji@0.004", "policy:emoji@0.004,shuffled"}
    assert not [use for use in uses if "not available" in use.how]


@pytest.mark.parametrize("judges", [[], ["emoji_preference"], ["clip", "emoji_preference"]])
def test_a_scorer_of_the_reward_cannot_decide_alone(judges):
    with pytest.raises(ConfigError, match=r"judges=\[emoji_detector\]"):
        check_claims(
            [make_sampler("policy:emoji@0.004"), make_sampler("fixed:8")],
            "emoji",
            {"policy": "emoji", "judges": judges, "hypotheses": {}},
        )


def test_claims_that_cannot_be_judged_cost_no_image(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        eval_sb3.main(compose_config(CONFIGS, "eval", [*SMALL, FEW, "judges=[emoji_preference]", f"out={tmp_path}"]))
    assert left.value.code == 2
    assert "no judge is independent" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_setting_that_claims_do_not_have_gets_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'nfe_limit'"):
        claims_of({"policy:a@0.01": named_traits("policy:a@0.01")}, {"nfe_limt": 3})


def test_an_experiment_of_the_other_script_is_refused():
    for name, item in (("train", "experiment=hypotheses"), ("eval", "experiment=as_published")):
        with pytest.raises(ConfigError, match="another script's"):
            check_overrides(CONFIGS, name, [item])
    check_overrides(CONFIGS, "eval", ["experiment=hypotheses", "prompts=3"])
    check_overrides(CONFIGS, "train", ["experiment=smoke"])


def test_where_an_evaluation_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for changes, folder in (
        ({"policy": None}, "runs/eval"),
        ({"policy": "emoji"}, "runs/eval_emoji"),
        ({"policy": "emoji", "hypotheses": {}}, "runs/hypotheses"),
        ({"policy": "runs/mine", "hypotheses": {}}, "runs/mine/hypotheses"),
        ({"policy": "runs/mine"}, "runs/mine/report"),
    ):
        assert out_folder({"out": None, "hypotheses": None, **changes}) == Path(folder)


def test_a_plan_tells_its_cost():
    assert str(RunCost((), None, 10)) == "plan: 10 images, 0 of them to be generated"
    least, most = Work(4, 3000, 6000), Work(4, 6000, 12000)
    words = str(RunCost((Stage("fixed:8", least, most, least),), None, 10))
    assert words == "plan: 10 images, 4 of them to be generated; 3,000 to 6,000 NFE"


@pytest.mark.slow
def test_verdicts_are_printed_and_in_the_report(tmp_path, capsys):
    """From records alone: the images of a real run are in the slow test below."""
    from addiffusion_env.evaluation.manifest import MarginEntry, write_text
    from addiffusion_env.evaluation.records import uid_of
    from addiffusion_env.evaluation.report import print_report, write_report

    nfe = {
        "policy:emoji@0.004": 6,
        "policy:emoji@0.03": 4,
        "policy:emoji@0.004,shuffled": 6,
        "fixed:50": 50,
        "fixed:4": 4,
    }
    nfe |= {"policy:emoji@0.004,no_refine": 3, "prompt_rule:8,6": 7, "best_of:2x4": 8, "threshold_resample:1": 9}
    made = [
        record(
            name,
            prompt=n,
            nfe=spent,
            correct=n % 10 > 0 if name.startswith("policy") and "," not in name else n % 2 > 0,
        )
        for name, spent in nfe.items()
        for n in range(40)
    ]
    manifest = manifest_of(list(nfe), hypotheses={"nfe_limit": 7.0, "reference": "fixed:50"})
    manifest = replace(
        manifest,
        prompt_ids=tuple(sorted({r.prompt_id for r in made})),
        margins=(MarginEntry(0.01, "2026-01-01T00:00:00+00:00", 0),),
    )
    assert made[0].uid == uid_of(made[0].variant, made[0].prompt_id, 0)
    RecordStore(tmp_path / "records").write(made)
    from dataclasses import asdict

    write_text(tmp_path / "evaluation.json", json.dumps(asdict(manifest)))
    report = write_report(tmp_path)
    found = report.extras["hypotheses"].results
    assert [v.hypothesis for v in found if v.decides] == list(HYPOTHESES)
    verdicts = {v.hypothesis: v.verdict for v in found if v.decides}
    assert verdicts["H1"] == "supported"
    print_report(report)
    printed = capsys.readouterr().out
    for name in HYPOTHESES:
        assert f"\n{name}: " in printed
    assert "before any record" in printed
    assert "refine is only masked" in printed
    page = report.html.read_text()
    assert page.index("Hypotheses") < page.index("Side by side</h2>")
    assert json.loads(report.summary_json.read_text())["hypotheses"][0]["verdict"] == "supported"


def test_an_unknown_claim_is_refused():
    with pytest.raises(UnknownNameError):
        HYPOTHESES["H9"]


def settled(folder):
    return [replace(r, seconds=0.0, peak_memory=None) for r in RecordStore(folder / "records").read()]


@pytest.mark.slow
def test_three_kills_at_random_change_nothing(tmp_path):
    """To the last bit, seconds and memory apart."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = subprocess.run(
        command(*SMALL, FEW, f"out={whole}"), capture_output=True, text=True, timeout=900, env=environment()
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "H4: " in done.stdout
    chance = random.Random(0)
    for _ in range(3):
        child = subprocess.Popen(
            command(*SMALL, FEW, f"out={broken}"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        before = len(list(broken.glob("records/records-*.parquet")))
        until = time.monotonic() + 600
        while child.poll() is None and len(list(broken.glob("records/records-*.parquet"))) <= before:
            assert time.monotonic() < until
            time.sleep(0.02)
        time.sleep(chance.random())
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert len(settled(broken)) < len(settled(whole))
    done = subprocess.run(command(*SMALL, FEW, f"out={broken}"), capture_output=True, timeout=900, env=environment())
    assert done.returncode == 0
    assert settled(broken) == settled(whole)

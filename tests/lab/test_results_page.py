"""The page of results: one verdict a claim, each sampler once a table, the detector's own accuracy."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from eval_records import record

from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.manifest import Manifest, MarginEntry, SamplerEntry, write_text
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.samplers import make_sampler
from addiffusion_env.samplers.traits import Traits
from addiffusion_lab.claims import HYPOTHESES
from addiffusion_lab.claims.detector import detector_accuracy
from addiffusion_lab.claims.page import main, write_page

ROOT = Path(__file__).parents[2]
NFE = {
    "policy:emoji@0.004": 6,
    "policy:emoji@0.03": 4,
    "policy:emoji@0.004,shuffled": 6,
    "policy:emoji@0.004,no_refine": 3,
    "fixed:4": 4,
    "fixed:50": 50,
    "prompt_rule:8,6": 7,
    "best_of:2x4": 8,
    "threshold_resample:1": 9,
}


def evaluation(folder, hypotheses):
    """The records of an evaluation in which the policy is correct on nine in ten and the others on half."""
    prompts = [f"p{number:04d}" for number in range(40)]
    manifest = Manifest(
        samplers=tuple(SamplerEntry(name, name, {}, traits=Traits.of(make_sampler(name))) for name in NFE),
        backbone="emoji",
        prompt_ids=tuple(prompts),
        prompts_digest="",
        seeds=(0,),
        margins=(MarginEntry(0.01, "2026-01-01T00:00:00+00:00", 0),),
        cost_per_nfe=0.02,
        settings={
            "policy": "emoji",
            "judges": ["emoji_detector"],
            "costs_per_nfe": ["5.6nfe"],
            "hypotheses": hypotheses,
        },
        versions={"torch": "2.14"},
    )
    made = [
        record(
            name,
            number,
            nfe=spent + number % 4 - 1 if name == "policy:emoji@0.004" else spent,
            correct=bool(number % 10 if name.startswith("policy") and "," not in name else number % 2),
        )
        for name, spent in NFE.items()
        for number in range(40)
    ]
    RecordStore(folder / "records").write(made)
    write_text(folder / "evaluation.json", json.dumps(asdict(manifest)))
    return folder


@pytest.mark.slow
def test_a_page_has_one_verdict_a_claim_and_says_how_it_came_about(tmp_path):
    folder = evaluation(tmp_path / "run", {"nfe_limit": 8.0, "reference": "fixed:50"})
    text = write_page([folder], tmp_path / "docs", detector_accuracy(16)).read_text(encoding="utf-8")
    verdicts = text.partition("## Hypotheses")[2].partition("##")[0]
    table = re.findall(r"^\| (H\w+(?:\\_\w+)?) \| (\w[\w ]*) \|", verdicts, flags=re.M)
    table = table[: len(HYPOTHESES)]  # then every comparison behind them
    assert [name.replace("\\", "") for name, _ in table] == list(HYPOTHESES)
    assert dict(table)["H1"] == "supported" and "no reference that checks finished images was run" in verdicts
    assert "held-out training prompts" in text or "held out of training" in text
    assert "## Accuracy of the detector" in text and "through the autoencoder" in text
    assert "What was tried, and its results" in text
    for figure in re.findall(r"\]\((plots/[^)]+)\)", text):
        assert (tmp_path / "docs" / figure).is_file()
    rows = json.loads((tmp_path / "docs" / "results.json").read_text())["rows"]
    assert [row["sampler"] for row in rows] == ["policy@0.004", "policy@0.03"]
    assert rows[0]["correct"]["estimate"] == 0.9


def test_an_evaluation_without_claims_has_no_page(tmp_path):
    folder = evaluation(tmp_path / "run", None)
    with pytest.raises(ConfigError, match="judges no claims"):
        write_page([folder], tmp_path / "docs")


@pytest.mark.slow
def test_the_detector_passes_what_is_right_and_refuses_what_is_wrong():
    rendered, decoded = detector_accuracy(96, seed=5)
    for found in (rendered, decoded):
        assert found.correct.n + found.wrong.n == 192 and found.wrong.n > 40
        assert found.correct.estimate >= 0.95 and found.wrong.estimate >= 0.95


def test_a_sampler_stands_once_in_each_table_of_the_page():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    tables = [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M)]
    samplers = [[row.split("|")[1].strip() for row in table[2:]] for table in tables if "sampler" in table[0]]
    assert [len(names) for names in samplers[::2]] == [27, 32], "three policies at nine costs per NFE; the claims"
    assert len(samplers) == 3, "the rules stand between them"
    for names in samplers:
        assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def test_a_folder_without_claims_is_refused_before_the_detector_is_measured(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--out", str(tmp_path / "page"), "--scenes", str(10**9)])
    assert "no evaluation in" in capsys.readouterr().err

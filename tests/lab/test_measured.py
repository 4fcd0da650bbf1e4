"""Metrics and a VLM judge over an evaluation's images, end to end on tiny things and a local server."""

import json
from pathlib import Path

import pytest
from vlm_server import JudgeServer

from addiffusion_env.errors import ConfigError, UnknownNameError
from addiffusion_env.evaluation.manifest import Manifest
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_lab.measured import MetricsConfig, VlmConfig, metrics_sections, vlm_sections

SAMPLERS_COMPARED = ["fixed:1", "fixed:2", "fixed:3"]


@pytest.fixture
def server():
    found = JudgeServer()
    yield found
    found.close()


@pytest.fixture
def evaluated(tmp_path, server):
    """(configuration, report) of a run with three metrics and a judge."""
    import eval_sb3

    config = {
        **eval_sb3.defaults(),
        "samplers": SAMPLERS_COMPARED,
        "prompts": 3,
        "judges": ["emoji_detector", "sharpness"],
        "out": str(tmp_path),
        "filmstrips": False,
        "progress_bar": False,
        "metrics": {
            "names": ["psnr", "fid", "kid"],
            "reference": "fixed:3",
            "settings": {"features": "dino", "kid_subsets": 2},
        },
        "vlm": {
            "judge": "openai:judge-1",
            "against": ["fixed:2", "fixed:3"],
            "max_cost": 1.0,
            "price": {"input": 1.0, "output": 1.0},
            "client": {"base_url": f"{server.url}/v1"},
        },
    }
    return config, eval_sb3.evaluate(config)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::addiffusion_lab.metrics.settings.SmallSampleWarning")
def test_metrics_and_a_judge_are_in_the_report_and_cost_nothing_twice(evaluated, server, tmp_path, capsys):
    import eval_sb3

    config, report = evaluated
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert set(found["samplers"]) == {"fixed:1", "fixed:2"}
    psnr = {name: results["psnr"]["value"] for name, results in found["samplers"].items()}
    assert all(5 < value < 60 for value in psnr.values())
    assert found["samplers"]["fixed:1"]["fid"]["name"] == "fid[dino]"
    rows = json.loads((tmp_path / "vlm.json").read_text())
    assert [(row["focus"], row["against"]) for row in rows] == [("fixed:1", "fixed:2"), ("fixed:1", "fixed:3")]
    assert all(row["won"] + row["tied"] + row["lost"] == 3 for row in rows)
    page = report.html.read_text()
    for words in ("VLM judge", "Metrics", "fid[dino]", "torch-fidelity", "first place", "GiB", "clip_score: clip, "):
        assert words in page, words
    asked = sum(server.requests.values())
    assert asked == 12
    capsys.readouterr()
    eval_sb3.evaluate(config)
    assert sum(server.requests.values()) == asked
    assert "0 questions to ask" in capsys.readouterr().out
    assert all(r.peak_memory is None or r.peak_memory > 1e6 for r in RecordStore(tmp_path / "records").read())


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"names": ["psrn"], "reference": "fixed:1"}, UnknownNameError, "did you mean 'psnr'"),
        ({"names": [], "reference": "fixed:1"}, ConfigError, "none is named"),
        ({"names": ["psnr"], "reference": "fixed:9"}, UnknownNameError, "reference sampler"),
        ({"names": ["psnr"], "reference": str(Path(__file__).parent)}, ConfigError, "pairs images"),
        ({"name": ["psnr"]}, ConfigError, "did you mean 'names'"),
        (
            {"names": ["fid"], "reference": "fixed:1", "settings": {"backend": "x"}},
            ConfigError,
            "metrics.settings.backend has been removed",
        ),
    ],
)
def test_metrics_that_cannot_be_measured_are_refused_at_once(given, error, words):
    with pytest.raises(error, match=words):
        MetricsConfig.read(given, SAMPLERS_COMPARED)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"judge": "openai:x", "max_cost": 1}, ConfigError, r"needs vlm\.against"),
        ({"judge": "openai:x", "against": ["fixed:2"]}, ConfigError, r"needs vlm\.max_cost"),
        ({"judge": "openai:x", "against": ["fixed:7"], "max_cost": 1}, UnknownNameError, "sampler to compare with"),
        ({"judges": "openai:x"}, ConfigError, "did you mean 'judge'"),
    ],
)
def test_a_judge_without_a_limit_or_a_comparator_is_refused(given, error, words):
    with pytest.raises(error, match=words):
        VlmConfig.read(given, SAMPLERS_COMPARED)


def test_nothing_measured_has_no_section(tmp_path):
    manifest = Manifest((), "emoji", (), "", (), (), 0.02, {}, {})
    assert metrics_sections(tmp_path, manifest) == vlm_sections(tmp_path, manifest) == []

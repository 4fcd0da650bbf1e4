"""`python -m addiffusion_env`."""

import json
from pathlib import Path

import pytest

from addiffusion_env import ENVIRONMENTS
from addiffusion_env.__main__ import main
from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.solvers import SOLVERS
from addiffusion_env.checks.components import find
from addiffusion_env.engine.process import REFINE_PRESETS
from addiffusion_env.observations import FEATURES
from addiffusion_env.prompts import BENCHMARKS, PROMPT_SOURCES
from addiffusion_env.rewards import PRESETS, TERMS
from addiffusion_env.samplers import SAMPLERS
from addiffusion_env.scorers import SCORERS
from addiffusion_lab.metrics import METRICS
from addiffusion_lab.vlm import SERVICES


def listed(capsys, *arguments):
    """The output of ``list``: kind -> {name: (runs, the rest of the line)}."""
    main(["list", *arguments])
    found, kind = {}, ""
    for line in capsys.readouterr().out.splitlines()[1:]:
        if line and not line.startswith(" "):
            kind = found.setdefault(line, {})
        elif line:
            state, name, *rest = line.split(maxsplit=2)
            kind[name] = (state == "yes", "".join(rest))
    return found


def test_list_describes_everything_that_is_registered(capsys):
    found = listed(capsys)
    kinds = {
        "environments": ENVIRONMENTS,
        "backbones": BACKBONES,
        "benchmarks": BENCHMARKS,
        "scorers": SCORERS,
        "reward terms": TERMS,
        "observation keys": FEATURES,
        "reward presets": PRESETS,
        "refine presets": REFINE_PRESETS,
        "solvers": SOLVERS,
        "metrics": METRICS,
    }
    for kind, names in kinds.items():
        assert list(found[kind]) == list(names), kind
    assert [*found["prompt sources"], *found["benchmarks"]] == list(PROMPT_SOURCES)
    assert [usage.split(":")[0] for usage in found["samplers"]] == list(SAMPLERS)
    assert set(found["judges"]) == {"emoji_detector", *(f"{name}:MODEL" for name in SERVICES)}
    for kind, entries in found.items():
        for name, (runs, line) in entries.items():
            assert len(line) > 10, f"{kind} {name} has no description"
            assert (" Needs " in line) is not runs, f"{kind} {name}: {line}"
            assert "`" not in line and ":class:" not in line


def test_list_shows_what_runs_on_this_machine(capsys, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))  # an empty cache
    monkeypatch.setenv("ADDIFFUSION_BENCHMARKS", str(tmp_path))
    for variable in ("OPENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    found = listed(capsys)
    lacking = {name.split(":")[0] for name, (runs, _) in found["samplers"].items() if not runs}
    assert lacking == {"lcm", "turbo", "fbcache"}
    assert [name for name, (runs, _) in found["backbones"].items() if runs] == ["emoji"]
    assert not any(runs for runs, _ in found["benchmarks"].values())
    assert [name for name, (runs, _) in found["judges"].items() if runs] == ["emoji_detector"]
    snapshot = tmp_path / "hub" / "models--stabilityai--sdxl-turbo" / "snapshots" / "1f3e"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    (tmp_path / "parti").mkdir()
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    found = listed(capsys)
    assert found["samplers"]["turbo:STEPS[,WEIGHTS]"][0] and found["judges"]["openai:MODEL"][0]


@pytest.mark.parametrize(
    "name",
    ["AdDiffusion-Emoji-v2", "nfe_cost", "unipc", "psnr", "fid", "text_file", "fixed:2"],
)
def test_check_prints_the_contracts_that_hold(name, capsys):
    main(["check", name])
    lines = capsys.readouterr().out.splitlines()
    assert name in lines[0]
    assert len(lines) >= 4 and all(line.startswith("  holds: ") for line in lines[1:])


def test_check_finds_all_components_with_a_name(capsys):
    assert [found.kind for found in find("emoji")] == ["backbone", "prompt source"]
    assert [found.how for found in find("sd15")] == ["tiny random weights in the real classes"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("AdDiffusion-Emojy-v0", "did you mean 'AdDiffusion-Emoji-v0'"),
        ("nfe_cots", "did you mean 'nfe_cost'"),
        ("sd16", "did you mean 'sd15'"),
        ("fixd:8", "did you mean 'fixed'"),
        ("lpips", "no weights at"),
        ("hps", "xswu/HPSv2"),
        ("fixed:many", "a sampler is written"),
        ("fixed:0", "STEPS must be at least 1"),
    ],
)
def test_check_reports_errors_without_a_traceback(name, words, capsys):
    with pytest.raises(SystemExit) as left:
        main(["check", name])
    assert left.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "list all registered components"),  # the whole help
        (["lst"], "invalid choice: 'lst'"),
        (["bench", "--lanes", "0"], "must be an integer of at least 1, got '0'"),
        (["bench", "--steps", "-3"], "must be an integer of at least 1, got '-3'"),
        (["bench", "--json", "no/such/folder/file.json"], "its folder is missing"),
    ],
)
def test_a_mistyped_command_line_is_refused(arguments, words, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2 and words in capsys.readouterr().err


def test_a_missing_package_is_an_error(capsys):
    with pytest.raises(SystemExit):
        main(["list", "--package", "no_such_module"])
    assert "--plugins: 'no_such_module' cannot be imported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        pytest.param(["--against", "{}"], "is no checkout of this project", marks=pytest.mark.slow),
        (["--against", "{}", "--rounds", "1"], "--rounds=1 with --against gives no interval"),
        (["--instant", "--backbone", "sd15"], "--instant replaces the networks of the embedded backbone"),
        (["--instant", "--load", "backbone_options.engine=openvino"], "--instant replaces networks of torch"),
        (["--load", "bfloat16"], "--load takes KEY=VALUE, got 'bfloat16'"),
        (["--load", "dtype={{"], "--load dtype={ cannot be read"),
        (["--load", "dtyp=bfloat16"], "did you mean 'dtype'"),
        (["--load", "dtype=float16", "device=cpu"], "float16 was requested on the CPU"),
    ],
)
def test_a_benchmark_that_cannot_run_says_why(more, words, capsys, tmp_path):
    with pytest.raises(SystemExit) as left:
        main(["bench", *(word.format(tmp_path) for word in more)])
    assert left.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.slow  # two processes that import everything
def test_a_checkout_is_compared_with_itself(capsys, tmp_path):
    path, here = tmp_path / "bench.json", str(Path(__file__).parents[1])
    arms = ["--instant", "--arms", "bare", "--samplers", "fixed:2", "--clock", "cpu", "--load", "dtype=float32"]
    main(["bench", "--against", here, "--lanes", "2", "--steps", "2", "--rounds", "2", *arms, "--json", str(path)])
    assert "times as fast" in capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    assert [(row["arm"], row["lanes"]) for row in rows] == [
        ("bare denoiser loop", 2),
        ("AdaptivePipeline, fixed:2", 2),
    ]
    assert all(row["low"] <= row["speedup"] <= row["high"] and row["rounds"] == 2 for row in rows)


def test_bench_prints_a_ratio_and_writes_json(capsys, tmp_path):
    path = tmp_path / "bench.json"
    arms = ["--arms", "bare", "vector", "--samplers", "fixed:2", "--load", "dtype=float32"]
    main(["bench", "--lanes", "1", "--steps", "2", "--rounds", "1", "--images", "1", *arms, "--json", str(path)])
    assert "of bare" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert [row["arm"] for row in found["rows"]][::2] == ["bare denoiser loop", "AdaptivePipeline, fixed:2"]
    assert 0 < found["rows"][1]["of_bare"] < 2
    assert found["options"] == "dtype=float32" and found["load"] >= 0  # the machine's load beside it

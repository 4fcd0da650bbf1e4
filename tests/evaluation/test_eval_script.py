"""eval_sb3.py as a user runs it."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from addiffusion_env.config import compose_config
from addiffusion_env.errors import ConfigError

ROOT = Path(__file__).parents[2]


def run(monkeypatch, folder, *arguments):
    """The script in this process: another one would spend most of its time on imports."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["eval_sb3.py", *arguments])
    runpy.run_path(str(ROOT / "eval_sb3.py"), run_name="__main__")


def test_a_run_prints_its_table_resumes_and_leaves_nothing_else(tmp_path, monkeypatch, capsys):
    run(
        monkeypatch,
        tmp_path,
        "prompts=2",
        "samplers=[fixed:2,random:0.5]",
        "out=here",
        "max_lanes=2",
        "filmstrips=false",
    )
    printed = capsys.readouterr().out
    assert "fixed:2" in printed
    assert f"report: {tmp_path / 'here' / 'report.html'}" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["here"]  # no Hydra folders or logs
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "here" / "records").iterdir()}
    page = (tmp_path / "here" / "report.html").read_bytes()

    import eval_sb3

    settings = json.loads((tmp_path / "here" / "evaluation.json").read_text())["settings"]
    eval_sb3.evaluate(settings)
    assert (tmp_path / "here" / "report.html").read_bytes() == page
    assert stamps == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "here" / "records").iterdir()}


def test_a_mistyped_key_costs_two_lines_and_exit_code_two(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, tmp_path, "prompts=1", "sampelrs=[fixed:2]")
    assert left.value.code == 2 and not list(tmp_path.iterdir())
    error = capsys.readouterr().err
    assert "no key 'sampelrs'" in error and "\n  -> did you mean 'samplers'" in error


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("out=/proc/nowhere", ("/proc/nowhere", "->")),
        ("policy=runs/none", ("no policy in runs/none: there is no such folder", "or emoji")),
        ("costs_per_nfe=[0.1]", ("costs_per_nfe=[0.1] would not take effect: there is no policy", "-> policy=emoji")),
    ],
)
def test_a_mistaken_value_costs_two_lines_and_exit_code_two(argument, words, tmp_path, monkeypatch, capsys):
    import eval_sb3

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        eval_sb3.main(compose_config(eval_sb3.CONFIGS, "eval", ["prompts=1", argument]))
    said = capsys.readouterr().err
    assert left.value.code == 2 and not list(tmp_path.iterdir())
    for word in ("error: ", *words):
        assert word in said


@pytest.fixture
def run_folder(tmp_path, emoji):
    """A run's folder with an untrained policy on a schedule of three steps."""
    import gymnasium
    from gymnasium import spaces

    from addiffusion_env.agents.policy import NET_ARCH, AdDiffusionPolicy
    from addiffusion_env.agents.policy_file import PolicyConfig, describe_space, save_policy

    environment = {"steps": 3, "cost_per_nfe": [0.0, 0.05], "refine": "resample_short"}
    space = gymnasium.make("AdDiffusion-Emoji-v0", **environment).observation_space
    config = PolicyConfig(environment, describe_space(space), NET_ARCH, 0.05, 0.02)
    policy = AdDiffusionPolicy(space, spaces.Discrete(3), lambda _: 0.0, net_arch=NET_ARCH)
    save_policy(tmp_path / "mine" / "policy", policy, config)
    return tmp_path / "mine"


def test_a_policy_is_evaluated_beside_the_others(run_folder, capsys):
    import eval_sb3

    wanted = {"prompts": 1, "samplers": ["fixed:2", "stop:1"], "costs_per_nfe": [None, 0.05], "progress_bar": False}
    report = eval_sb3.evaluate_run(run_folder, wanted, max_lanes=2)
    assert report.html == run_folder / "report" / "report.html"
    names = [row.sampler for row in report.summary.samplers]
    assert names == ["policy:mine@0.02", "policy:mine@0.05", "fixed:2", "stop:1"]
    assert report.summary.focus == names[0]
    assert set(report.summary.behaviours) == set(names[:2])
    assert [path.stem for path in (run_folder / "report" / "plots").glob("film_*.png")]
    assert "policy:mine@0.02" in capsys.readouterr().out


def test_another_policy_under_the_same_name_has_other_records(run_folder):
    from addiffusion_env.samplers import make_sampler

    before = make_sampler(f"policy:{run_folder}@0.01")
    config = run_folder / "policy" / "config.json"
    config.write_text(config.read_text().replace('"provenance": {}', '"provenance": {"decisions": 9}'))
    after = make_sampler(f"policy:{run_folder / 'policy'}@0.01")
    assert before.name == after.name == "policy:mine@0.01"
    assert before.fingerprint != after.fingerprint


def test_settings_from_training_are_checked():
    import eval_sb3

    with pytest.raises(ConfigError, match="did you mean 'prompts'"):
        eval_sb3.evaluate_run("runs/x", {"prompt": 3})

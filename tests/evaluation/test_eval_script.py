"""eval_sb3.py as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from addiffusion_env.errors import ConfigError

ROOT = Path(__file__).parents[2]


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / "eval_sb3.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "120",
            "HOME": str(cwd.parent),
        },
    )


def test_a_run_prints_its_table_resumes_and_leaves_nothing_else(tmp_path):
    command = ("prompts=2", "methods=[fixed:2,random:0.3]", "out=here", "max_lanes=2")
    first = run(*command, cwd=tmp_path)
    assert first.returncode == 0, first.stderr[-2000:]
    assert "fixed:2" in first.stdout
    assert f"report: {tmp_path / 'here' / 'report.html'}" in first.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["here"]  # no Hydra folders or logs
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "here" / "records").iterdir()}
    again = run(*command, cwd=tmp_path)
    assert again.returncode == 0
    assert again.stdout == first.stdout
    assert stamps == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "here" / "records").iterdir()}


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("metods=[fixed:2]", ("no key 'metods'", "did you mean 'methods'")),
        ("out=/proc/nowhere", ("/proc/nowhere", "->")),
    ],
)
def test_a_mistake_costs_two_lines_and_exit_code_two(argument, words, tmp_path):
    done = run("prompts=1", argument, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_settings_from_training_are_checked():
    import eval_sb3

    with pytest.raises(ConfigError, match="did you mean 'prompts'"):
        eval_sb3.evaluate_run("runs/x", {"prompt": 3})

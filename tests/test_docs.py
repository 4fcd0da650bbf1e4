"""Every code block and command in the docs is run, unless a note above it gives the reason why not.

A page's Python blocks run in order, in one namespace and a separate folder; a block with a title is a file. Commands of
the command line run in this process; those that take minutes run with reduced settings, from :data:`REDUCED`, which the
page mentions. A block below ``*Not run: reason.*`` is skipped.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from addiffusion_env import plugins
from addiffusion_env.__main__ import main
from addiffusion_env.backbones import BACKBONES
from addiffusion_env.observations import FEATURES
from addiffusion_env.prompts import BENCHMARKS, PROMPT_SOURCES
from addiffusion_env.rewards import TERMS
from addiffusion_env.samplers import SAMPLERS
from addiffusion_env.scorers import SCORERS
from addiffusion_lab.metrics import METRICS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GENERATED = DOCS / "results.md"  # written by addiffusion_lab/claims/page.py
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page != GENERATED]
FENCE = re.compile(
    r"(?:^\*(?P<note>[^*\n]+)\*\n\n)?^```(?P<kind>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$",
    re.M | re.S,
)
REGISTRIES = (BACKBONES, SAMPLERS, METRICS, BENCHMARKS, PROMPT_SOURCES, TERMS, FEATURES, SCORERS)
POLICY = ROOT / "addiffusion_env" / "agents" / "pretrained" / "emoji"

SWEEP = "hydra.sweeper.n_trials=2 lanes=2 total_timesteps=32 env.refine.limit=1 ppo.n_steps=4 ppo.batch_size=8 "
SWEEP += "tabular.images=2 tabular.held_out=0 "
SWEEP += "tabular.attempts=2 tabular.lanes=4 tabular.total_timesteps=64 tabular.ppo.n_steps=8 tabular.ppo.batch_size=32"
ZOO = "-n 8 --env-kwargs steps:2 --hyperparams n_steps:4 batch_size:8 n_envs:2 n_epochs:1 --eval-freq -1 -f zoo"
NIGHT = '\'report.samplers=["policy:${run_dir}@${night.at},no_refine","fixed:2","fixed:4"]\''
SMALL = "prompts=2 samplers=[fixed:2,fixed:4] filmstrips=false progress_bar=false"
TABLE = "tabular.images=2 tabular.attempts=2 env.refine.limit=1 tabular.lanes=4 tabular.total_timesteps=64 "
TABLE += "tabular.ppo.n_steps=8 tabular.ppo.batch_size=32"
LIVE = "lanes=2 total_timesteps=32 report=null progress_bar=false"
REPLAY = f"{LIVE} algorithm_kwargs.learning_starts=8"
REDUCED = {
    "python train_sb3.py experiment=afternoon": TABLE,
    "python train_sb3.py experiment=dqn": REPLAY,
    "python train_sb3.py algorithm=qrdqn": LIVE,
    "python train_sb3.py experiment=recurrent_ppo": f"{LIVE} ppo.n_steps=4 ppo.batch_size=8",
    "python train_sb3.py plugins=[my_backbones]": f"{LIVE} ppo.n_steps=4 ppo.batch_size=8",
    "python eval_sb3.py policy=runs/dqn": SMALL,
    "python -m addiffusion_lab.learning_curves": "",
    "python train_sb3.py experiment=sweep": SWEEP,
    "python train_sb3.py": "experiment=smoke",
    "python eval_sb3.py policy=runs/emoji": f"{SMALL} policy={POLICY} out=runs/beside",
    "python eval_sb3.py": SMALL,
    "python -m rl_zoo3.train": ZOO,
    "python -m addiffusion_lab.rehearsal": f"progress_bar=false {NIGHT}",
}
"""Beginning of a command -> what is appended so that it takes seconds instead of minutes; the first that fits."""


@dataclass(frozen=True)
class Block:
    """A fenced block: the line above it in italics, its language, its file name and its text."""

    note: str
    kind: str
    title: str
    code: str

    @property
    def skipped(self) -> bool:
        return self.note.startswith("Not run: ")

    @property
    def slow(self) -> bool:
        return not self.skipped and (self.note.startswith("Run by the tests ") or "python train" in self.code)


def blocks(page: Path) -> list[Block]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(*(match[name] or "" for name in ("note", "kind", "title", "code"))) for match in found]


def commands(code: str) -> list[str]:
    return [line for line in code.splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A separate folder; registrations and imports of a page are undone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    registered = [dict(registry._entries) for registry in REGISTRIES]
    modules, known = set(sys.modules), dict(plugins._loaded)
    yield tmp_path
    plugins._loaded = known
    for registry, entries in zip(REGISTRIES, registered, strict=True):
        registry._entries = entries
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def run_here(command: str, monkeypatch) -> None:
    """``[VARIABLE=value] python -m addiffusion_env ...`` in this process."""
    words = shlex.split(command)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        monkeypatch.setenv(name, value)
    assert words[:3] == ["python", "-m", "addiffusion_env"], f"nothing runs {command!r}: add it to REDUCED, or a note"
    main(words[3:])


def run_reduced(command: str, folder: Path) -> None:
    """Runs a script in a separate process, with the arguments that :data:`REDUCED` appends."""
    start = next(beginning for beginning in REDUCED if command.startswith(beginning))
    words = shlex.split(f"{command} {REDUCED[start]}")[1:]
    if words[0].endswith(".py"):
        words[0] = str(ROOT / words[0])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


def play(page: Path, folder: Path, monkeypatch, slow: bool) -> None:
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        if block.skipped or (block.slow and not slow):
            continue
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.code, encoding="utf-8")
        elif block.kind == "python":
            exec(compile(block.code, f"{page.relative_to(ROOT)}", "exec"), namespace)
        else:
            for command in commands(block.code):
                if any(command.startswith(beginning) for beginning in REDUCED):
                    run_reduced(command, folder)
                else:
                    run_here(command, monkeypatch)


FAST = [page for page in PAGES if any(not (block.skipped or block.slow) for block in blocks(page))]
SLOW = [page for page in PAGES if any(block.slow for block in blocks(page))]


@pytest.mark.parametrize("page", FAST, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_runs(page, workshop, monkeypatch):
    play(page, workshop, monkeypatch, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_takes_long_on_a_page_runs_reduced(page, workshop, monkeypatch):
    for folder in ("configs", "scripts"):
        shutil.copytree(ROOT / folder, workshop / folder)
    play(page, workshop, monkeypatch, slow=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_block_is_run_or_says_why_not(page):
    text = page.read_text(encoding="utf-8")
    found = blocks(page)
    assert len(found) * 2 == len(re.findall(r"^```", text, flags=re.M)), "a fence that the tests cannot read"
    for block in found:
        assert block.kind in ("python", "bash") or block.title, f"nothing runs a block of {block.kind or 'no language'}"
        assert not block.skipped or len(block.note) > len("Not run: a GPU")
        long = block.kind == "bash" and any(line.startswith(tuple(REDUCED)) for line in commands(block.code))
        assert not long or block.note.startswith(("Run by the tests ", "Not run: ")), block.code


def test_commands_within_lines_exist():
    """Commands within a sentence: their command, script or make target exists."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in [ROOT / "README.md", *PAGES]:
        for command in re.findall(r"`((?:python|make) [^`\n]+)`", page.read_text(encoding="utf-8")):
            words = shlex.split(command)
            if words[0] == "make":
                assert f"\n{words[1]}:" in makefile, command
            elif words[1] == "-m":
                name = words[2].replace(".", "/")
                assert (ROOT / f"{name}.py").is_file() or (ROOT / name / "__main__.py").is_file(), command
                verbs = ("list", "check", "bench", "calibrate", "demo", "export")
                assert words[2] != "addiffusion_env" or words[3] in verbs, command
            else:
                assert (ROOT / words[1]).is_file(), command


def test_nested_lists_are_indented_by_four_spaces():
    """Python-Markdown, which builds the site, reads fewer as the outer list; GitHub reads both."""
    for page in DOCS.rglob("*.md"):
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        assert not re.findall(r"^ {1,3}[-*] .*$", text, flags=re.M), page


def test_the_limits_quote_what_was_measured():
    """A share "correct at" some NFE is a row of the shipped policy's results; an interval stands whole on the page."""
    text = (DOCS / "limits.md").read_text(encoding="utf-8").partition("## Where this")[0]
    page = GENERATED.read_text(encoding="utf-8")
    rows = json.loads((POLICY / "results.json").read_text(encoding="utf-8"))["rows"]
    measured = {(round(row["correct"]["estimate"], 3), row["nfe"]["estimate"]) for row in rows}  # pages have 3 digits
    quoted = re.findall(r"(\.\d+) \[\.\d+, \.\d+\] correct at (\d+\.\d+) NFE", text)
    intervals = re.findall(r"\.\d+ \[\.\d+, \.\d+\]", text)
    assert quoted and intervals
    assert {(float(share), float(nfe)) for share, nfe in quoted} <= measured
    assert [interval for interval in intervals if interval not in page] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings", reason="needs the extra [docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-3000:]
    page = (tmp_path / "site" / "reference" / "environments.html").read_text(encoding="utf-8")
    assert "guidance_interval" in page and 'class="doc' in page

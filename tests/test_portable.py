"""Windows and macOS, as far as they can be tested elsewhere: encodings, modules, locks, spawned processes."""

import ast
import fcntl
import os
import pathlib
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stable_baselines3.common.vec_env import SubprocVecEnv

from addiffusion_env.agents.checkpoints import Snapshot, checkpoints
from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_env.evaluation.store import write_atomically
from addiffusion_env.files import whole_file

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = [
    *(ROOT / "addiffusion_env").rglob("*.py"),
    *(ROOT / "addiffusion_lab").rglob("*.py"),
    *ROOT.glob("*.py"),
]
TEXT_METHODS = {"read_text", "write_text", "open"}
OTHER_OPENS = {"os.open", "Image.open"}  # these do not read text


def opens_text_without_encoding(call):
    called = ast.unparse(call.func)
    sampler = called.rpartition(".")[2] if "." in called else ""
    if called != "open" and (sampler not in TEXT_METHODS or called in OTHER_OPENS):
        return False
    written = ast.unparse(call)
    return "encoding=" not in written and "b'" not in written  # "rb" and "wb" need none


def test_text_files_name_their_encoding():
    """Without one Windows reads and writes cp1252. Ruff's PLW1514 knows only paths that are annotated as such."""
    unnamed = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and opens_text_without_encoding(node)
    ]
    assert not unnamed, "\n".join(unnamed)


@pytest.fixture
def windows(monkeypatch):
    """Windows' rules for files: no fsync of files opened for reading, no opening of folders, locks."""
    fsync, open_file, replace = os.fsync, os.open, os.replace

    def flush(number):
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        fsync(number)

    def opened(path, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, *args, **kwargs)

    def renamed(source, target):
        held = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
        for path in (source, target):
            if os.path.realpath(path) in held:
                raise PermissionError(13, "The process cannot access the file because it is being used", str(path))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "replace", renamed)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into Linux's list of open files")
def test_files_are_written_by_windows_rules(windows, tmp_path):
    for content in (b"first", b"second"):
        with whole_file(tmp_path / "whole.bin") as file:
            file.write(content)
    assert (tmp_path / "whole.bin").read_bytes() == b"second"
    table = pa.table({"x": [1, 2]})
    write_atomically(table, tmp_path / "table.parquet", "none")
    assert pq.read_table(tmp_path / "table.parquet").equals(table)
    snapshot = object.__new__(Snapshot)  # a snapshot without a model
    snapshot.step, snapshot.buffer, snapshot.state = 8, None, {"step": 8, "model": {}}
    written = snapshot.write(tmp_path)
    assert checkpoints(tmp_path) == [written]


@pytest.mark.slow
def test_spawned_environments_run():
    env = SubprocVecEnv([partial(AdDiffusionEnv, steps=2, refine="off")], start_method="spawn")
    try:
        assert env.processes[0].__class__.__name__ == "SpawnProcess"
        env.reset()
        infos = [env.step(np.array([action]))[3][0] for action in (0, 1)]
        assert [info["nfe"] for info in infos] == [1, 2] and infos[1]["image"].shape == (64, 64, 3)
    finally:
        env.close()

"""SIGKILL at random moments of training and evaluation: a resumed run has the results of an uninterrupted one.

``ADDIFFUSION_KILLS`` says how many times each (20); ``ADDIFFUSION_KILL_SEED`` which moments.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from addiffusion_env.agents.checkpoints import read_latest
from addiffusion_env.evaluation.store import RecordStore

KILLS = int(os.environ.get("ADDIFFUSION_KILLS", "20"))
SEED = int(os.environ.get("ADDIFFUSION_KILL_SEED", "0"))


class Nursery:
    """The process that forks and kills the runs."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, str(Path(__file__).with_name("nursery.py"))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._answer() == {"ready": True}

    def run(self, kind: str, folder: Path, kill_after: float | None = None) -> dict:
        folder.mkdir(exist_ok=True)
        request = {"kind": kind, "folder": str(folder), "kill_after": kill_after}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        assert line, f"the nursery ended with {self.process.wait()}"
        return json.loads(line)


@pytest.fixture(scope="module")
def nursery():
    made = Nursery()
    yield made
    made.process.stdin.close()
    made.process.wait()


def end_of_training(folder: Path) -> dict:
    """The results of a run: the policy, its configuration, the last checkpoint."""
    run = folder / "run"
    state = read_latest(run / "checkpoints")
    return {
        "weights": {name: value.tolist() for name, value in load_file(run / "policy/policy.safetensors").items()},
        "policy": json.loads((run / "policy/config.json").read_text()),
        "step": state["step"],
        "optimiser": str(state["model"]["parameters"]["policy.optimizer"]["state"]),
        "lanes": str(state["env"]),
        "generators": str(state["rng"]),
        "episodes": state["episodes"],
    }


def end_of_evaluation(folder: Path) -> list:
    """Every record exactly, except for measurements."""
    return [replace(made, seconds=0.0, peak_memory=0) for made in RecordStore(folder / "run/records").read()]


ENDS = {"train": end_of_training, "eval": end_of_evaluation}
LEFT = {"train": ("run/policy/config.json",), "eval": ("run/report.html", "run/report.md", "run/summary.json")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_a_killed_run_ends_like_an_uninterrupted_one(kind, nursery, tmp_path):
    rng = random.Random(f"{kind} {SEED}")
    unbroken = nursery.run(kind, tmp_path / "whole")
    assert unbroken["status"] == 0, (tmp_path / "whole/log").read_text()[-3000:]
    whole, length = ENDS[kind](tmp_path / "whole"), unbroken["seconds"]
    kills, runs = 0, 0
    while kills < KILLS:
        folder, attempts = tmp_path / f"broken{runs}", []
        while True:  # killed repeatedly, until one run finishes
            done = nursery.run(kind, folder, rng.uniform(0, length) if kills < KILLS else None)
            attempts.append(round(done["seconds"], 2))
            if not done["killed"]:
                break
            kills += 1
        runs += 1
        assert done["status"] == 0, (folder / "log").read_text()[-3000:]
        assert ENDS[kind](folder) == whole, f"tries of {attempts} s, unbroken {length:.2f}"
        assert all((folder / name).is_file() for name in LEFT[kind])
        assert not list(folder.glob("run/checkpoints/.*")), "half a checkpoint of a killed process is left"
        print(f"{kind}: run {runs} ended as the unbroken one; {kills} kills, tries of {attempts} s", flush=True)
    print(f"{kind}: {kills} kills in {runs} runs, all ended as the unbroken one of {length:.1f} s", flush=True)

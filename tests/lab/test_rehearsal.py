"""The whole night of experiment=full at tiny size: every stage, killed and resumed, with random weights."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forking import forked
from omegaconf import OmegaConf
from safetensors.torch import load_file

import train_sb3
from addiffusion_env.agents.calibrator_file import CALIBRATOR_FILE, named_calibrators
from addiffusion_env.agents.make import make_policy
from addiffusion_env.agents.pipeline import AdaptivePipeline
from addiffusion_env.agents.policy_file import load_config
from addiffusion_env.config import compose_config
from addiffusion_env.errors import ConfigError, ResumeError, UnknownNameError
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.scorers.utility import Calibrator
from addiffusion_lab.claims.page import judged
from addiffusion_lab.rehearsal import rehearse

FEW = (
    "report.samplers=['policy:${run_dir}@${night.at},no_refine','fixed:${night.short}','fixed:${night.reference}']",
    "+report.filmstrips=false",
    "+report.samples=0",
)
STAGES = {
    "record": "table/*.parquet",
    "fit": "calibrator/*.safetensors",
    "train": "table_policy/*.pt",
    "export": "policy/policy.safetensors",
    "evaluate": "report/records/records-*.parquet",
}
"""Stage -> what is in the run's folder as soon as it has written something."""


def configured(backbone: str, folder: Path, *more: str) -> dict:
    settings = [*rehearse(backbone, folder), "progress_bar=false", *more]
    return OmegaConf.to_container(compose_config(train_sb3.CONFIGS, "train", settings), resolve=True)


def spend_the_night(config: dict) -> None:
    """What train_sb3.py does with a configuration."""
    folder, _ = train_sb3.train(config)
    train_sb3.report(folder, config)


def kill_at(config: dict, pattern: str, log: Path) -> None:
    """Begins a night in another process, and kills it as soon as its folder holds a file of this name."""
    run = Path(config["run_dir"])

    def night() -> None:
        torch.set_num_threads(1)
        spend_the_night(config)

    child = forked(night, log)
    until = time.monotonic() + 1200
    while not list(run.glob(pattern)):
        done, status = os.waitpid(child, os.WNOHANG)
        assert not done, f"ended with {status} before {pattern}: {log.read_text()[-3000:]}"
        assert time.monotonic() < until, log.read_text()[-3000:]
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def check_policy(folder: Path) -> None:
    """The policy of a run, with its frontier and the run's calibrator, which knows the previews of the process."""
    policy = load_config(folder / "run" / "policy")
    (calibrator,) = named_calibrators(policy.environment)
    assert calibrator == str(folder / "run" / "policy" / CALIBRATOR_FILE)
    assert Calibrator.load(Path(calibrator)).steps.tolist() == [2]
    assert policy.frontier and "held out" in policy.frontier_prompts


def check_whole(folder: Path, backbone: str) -> None:
    """Every stage has left what it should leave."""
    check_policy(folder)
    run = folder / "run"
    manifest, records, verdicts = judged(run / "report")
    assert len(records) == len(manifest.samplers) * 2  # prompts
    assert {verdict.hypothesis[:2] for verdict in verdicts} == {"H1", "H2", "H3", "H4"}
    page = (run / "report" / "page" / "results.md").read_text()
    assert f"Results with {backbone}" in page and "Hypotheses" in page
    assert (run / "report" / "report.html").is_file()


def test_a_night_until_its_policy(tmp_path, monkeypatch, capsys):
    """The evaluation and the kills are in the slow test below."""
    monkeypatch.chdir(tmp_path)
    config = configured("sd15", tmp_path, "report=null")
    train_sb3.train(config)
    check_policy(tmp_path)
    capsys.readouterr()
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/*.parquet")}
    train_sb3.train(config)  # once more: nothing is left to do
    said = capsys.readouterr().out
    assert "trained on the table before" in said and "imitated" not in said
    assert {path: path.stat().st_mtime_ns for path in shards} == shards  # not recorded again
    changed = {**config, "tabular": {**config["tabular"], "total_timesteps": 512}}
    with pytest.raises(ResumeError, match=r"tabular\.total_timesteps: 256 -> 512"):
        train_sb3.train(changed)
    make_policy(tmp_path / "run").save_pretrained(tmp_path / "pushed")  # as push_to_hub does
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    out = AdaptivePipeline.from_pretrained(tmp_path / "pushed", device="cpu")(["a red dog"], seeds=[0])
    assert out.nfe[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["sd15", "sdxl", "sd35", "flux"])
def test_a_night_killed_at_every_stage(backbone, tmp_path, monkeypatch):
    """It ends as one that was not killed, to the last bit, measured values apart."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ends = []
    for folder in (whole, broken):
        folder.mkdir()
        monkeypatch.chdir(folder)
        config = configured(backbone, folder)
        for pattern in STAGES.values() if folder == broken else ():
            kill_at(config, pattern, folder / "log")
        spend_the_night(config)
        check_whole(folder, backbone)
        found = RecordStore(folder / "run" / "report" / "records").read()
        records = {
            (r.sampler, r.prompt, r.seed): replace(r, seconds=0.0, peak_memory=0, uid="", variant="") for r in found
        }
        # By value: safetensors writes the names of shared tensors in an order of its own.
        weights = {name: part.tolist() for name, part in load_file(folder / "run/policy/policy.safetensors").items()}
        ends.append((weights, records))
    assert ends[0][0] == ends[1][0]
    assert ends[0][1] == ends[1][1]


@pytest.mark.slow
def test_a_night_in_ray_workers(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    config = configured("sd15", tmp_path, *FEW, "rollouts=ray", "rollouts.workers=2")
    try:
        spend_the_night(config)
    finally:
        ray.shutdown()
    check_whole(tmp_path, "sd15")


def test_what_cannot_work_is_refused_before_anything_is_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean 'sdxl'"):
        rehearse("sdx", tmp_path)
    base = compose_config(train_sb3.CONFIGS, "train", ["experiment=full", "backbone=sd15", "report=null"])
    config = OmegaConf.to_container(base, resolve=True)
    few = {**config, "tabular": {**config["tabular"], "images": 64}}
    with pytest.raises(ConfigError, match=r"64 directions, which needs more prompts .* tabular\.images is 64"):
        train_sb3.train(few)
    named = {**config["env"], "refine": {**config["env"]["refine"], "utility": {"calibrator": "emoji"}}}
    with pytest.raises(ConfigError, match="the environment uses 'emoji' already"):
        train_sb3.train({**config, "env": named})

"""Runs training or evaluation in child processes that it kills: models are loaded once, then forked.

One JSON request per line on stdin: ``{"kind": "train" | "eval", "folder": ..., "kill_after": seconds or null}``; one
JSON answer per line on stdout: ``{"killed": bool, "status": the exit status, "seconds": ...}``. The child's output goes
to ``<folder>/log``.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from omegaconf import OmegaConf

from addiffusion_env.config import compose_config

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from forking import forked  # noqa: E402

OVERRIDES = {
    "train": [
        "experiment=smoke",
        "run_dir=run",
        "lanes=2",
        "total_timesteps=12",
        "checkpoint_every=4",
        "ppo={n_steps: 2, batch_size: 4, n_epochs: 1}",
        "tabular={images: 1, attempts: 2, held_out: 1, lanes: 2, imitate: 64, total_timesteps: 16}",
        "tabular.ppo={n_steps: 8, batch_size: 16, n_epochs: 1}",
        "device=cpu",
        "progress_bar=false",
    ],
    "eval": [
        "out=run",
        "prompts=4",
        "samplers=[fixed:2,random:0.5]",
        "env={steps: 2, refine: off}",
        "shard_size=2",
        "max_lanes=2",
        "device=cpu",
        "progress_bar=false",
    ],
}


def configured(kind: str) -> dict:
    config = OmegaConf.to_container(compose_config(ROOT / "configs", kind, OVERRIDES[kind]), resolve=True)
    import eval_sb3

    return config if kind == "train" else {key: config[key] for key in eval_sb3.defaults()}


def prepare() -> None:
    """Does everything that takes seconds and is not part of the test."""
    from addiffusion_env.envs.settings import EnvSettings, load_backbone, load_scorers

    for module in (
        "matplotlib.pyplot",
        "scipy.stats",
        "torch.utils.tensorboard",
        "eval_sb3",
        "train_sb3",
        "addiffusion_env.agents.callbacks",
        "addiffusion_env.agents.tabular_training",
        "addiffusion_env.evaluation.choices",
        "addiffusion_env.evaluation.report",
    ):
        importlib.import_module(module)
    for device in ("auto", "cpu"):
        load_scorers(load_backbone(EnvSettings(device=device)))


def child(kind: str, folder: str, config: dict) -> None:
    os.chdir(folder)
    if kind == "train":
        from train_sb3 import train

        train(config)
    else:
        from eval_sb3 import evaluate

        evaluate(config)


def run(request: dict, config: dict) -> dict:
    begun = time.monotonic()
    pid = forked(lambda: child(request["kind"], request["folder"], config), Path(request["folder"]) / "log")
    killed, until = False, request["kill_after"]
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        seconds = time.monotonic() - begun
        if done:
            return {"killed": killed, "status": os.waitstatus_to_exitcode(status), "seconds": seconds}
        if until is not None and seconds >= until and not killed:
            os.kill(pid, signal.SIGKILL)
            killed = True
        time.sleep(0.01)


def main() -> None:
    torch.set_num_threads(1)
    prepare()
    configs = {kind: configured(kind) for kind in OVERRIDES}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(run(request, configs[request["kind"]])), flush=True)


if __name__ == "__main__":
    main()

"""RL Baselines3 Zoo and Optuna's sweep, as in their configuration files, in separate processes."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from addiffusion_env.agents.training import last_return

ROOT = Path(__file__).parents[2]
ZOO = sorted((ROOT / "scripts" / "rl_zoo").glob("*.yml"))
SMALL = {
    "ppo": ["n_steps:4", "batch_size:8", "n_envs:2", "n_epochs:1"],
    "ppo_lstm": ["n_steps:4", "batch_size:8", "n_envs:2", "n_epochs:1"],
    "dqn": ["learning_starts:4", "batch_size:4", "n_envs:2"],
}
TABULAR = ("tabular.ppo.ent_coef", "tabular.ppo.learning_rate")


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_every_zoo_file_is_tried_here():
    assert {path.stem for path in ZOO} == set(SMALL)
    for path in ZOO:
        assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) == {"AdDiffusion-Emoji-v2"}


@pytest.mark.slow
@pytest.mark.parametrize("path", ZOO, ids=lambda path: path.stem)
def test_the_zoo_trains_by_the_file(path, tmp_path):
    pytest.importorskip("rl_zoo3", reason="needs the extra [zoo]")
    zoo = ["-m", "rl_zoo3.train", "--algo", path.stem, "--env", "AdDiffusion-Emoji-v2"]
    zoo += ["--gym-packages", "addiffusion_env", "--conf-file", str(path), "--env-kwargs", "steps:2"]
    out = run(*zoo, "--hyperparams", *SMALL[path.stem], "-n", "8", "--eval-freq", "-1", "-f", str(tmp_path))
    assert f"Loading hyperparameters from: {path}" in out
    folder = tmp_path / path.stem / "AdDiffusion-Emoji-v2_1"
    assert (folder / "AdDiffusion-Emoji-v2.zip").is_file()


@pytest.mark.slow
def test_the_sweep_runs_two_trials_and_writes_the_best(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra [sweep]")
    small = [
        "lanes=2",
        "total_timesteps=32",
        "env.refine.limit=1",
        "ppo.n_steps=4",
        "ppo.batch_size=8",
        "hydra.sweeper.n_trials=2",
    ]
    table = [
        "images=2",
        "attempts=2",
        "held_out=0",
        "lanes=4",
        "total_timesteps=64",
        "ppo.n_steps=8",
        "ppo.batch_size=32",
    ]
    small += [f"tabular.{item}" for item in table]
    run(str(ROOT / "train_sb3.py"), "experiment=sweep", *small, cwd=tmp_path)
    found = yaml.safe_load((tmp_path / "runs" / "sweep" / "optimization_results.yaml").read_text(encoding="utf-8"))
    assert set(found["best_params"]) == {"ppo.learning_rate", "ppo.ent_coef", "ppo.n_epochs", *TABULAR}
    assert math.isfinite(found["best_value"])
    assert all((tmp_path / "runs" / "sweep" / str(trial) / "policy" / "config.json").is_file() for trial in (0, 1))


def test_the_objective_is_the_mean_return_of_the_last_episodes():
    class Trained:
        ep_info_buffer = None

    model = Trained()
    assert math.isnan(last_return(model))
    model.ep_info_buffer = [{"r": 1.0}, {"r": 2.0}]
    assert last_return(model) == 1.5

"""SLURM without SLURM: what would be run, and what happens at the limit, with small stand-ins for its commands."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from addiffusion_env.config import store_environments

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "ray.slurm"

# scontrol names the nodes and notes what is queued again; srun and ray run what they are given, in one place.
STAND_INS = {
    "scontrol": '[[ $1 == show ]] && echo 127.0.0.1 || echo "$@" >> requeued\n',
    "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "ray": 'while [[ $1 != -- ]]; do echo "$1" >> ray_arguments; shift; done\nshift\n"$@"\n',
    "sbatch": 'cp "${@: -1}" submitted\necho Submitted batch job 77\n',
    "sacct": 'echo "JobID|State|NodeList"; echo "77_0|FAILED|n1"; echo "77_1|FAILED|n1"\n',
    "squeue": "exit 0\n",
    "scancel": "exit 0\n",
}

TRAINER = """
import os, signal, sys, time
from pathlib import Path
arguments = sys.argv[1:]
Path("arguments").write_text(" ".join(arguments) + " " + os.environ["RAY_ADDRESS"])
def stop(*_):
    Path("checkpoint").write_text("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
Path("started").touch()
if "wait" in arguments and not Path("checkpoint").exists():
    time.sleep(120)
sys.exit(int(arguments[0]) if arguments[0].isdigit() else 0)
"""


@pytest.fixture
def session(tmp_path):
    """A folder with the stand-ins and a trainer that saves when it is told to stop; (folder, environment)."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, body in STAND_INS.items():
        path = bin_folder / name
        path.write_text(f"#!/bin/bash\n{body}")
        path.chmod(0o755)
    (tmp_path / "train.py").write_text(TRAINER)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RAY"))}
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "8"}
    where = {"SLURM_SUBMIT_DIR": str(tmp_path), "PYTHON": sys.executable}
    return tmp_path, {**kept, **job, **where, "PATH": f"{bin_folder}:{os.environ['PATH']}"}


def submit(session, *arguments, **more):
    folder, environment = session
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(
        command, cwd=folder, env={**environment, **more}, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_script_is_well_formed():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    header = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    for needed in ("--signal=B:USR1@300", "--requeue", "--open-mode=append", "--ntasks-per-node=1"):
        assert f"#SBATCH {needed}" in header


def test_a_dry_run_prints_the_command_and_runs_nothing(session):
    folder, environment = session
    done = submit(session, "train_sb3.py", "run_dir=runs/a b", DRY_RUN="1", PYTHON="python")
    assert done.returncode == 0
    assert "ray symmetric-run --address 127.0.0.1:20077 --min-nodes 2 --num-cpus=8 --" in done.stdout
    assert r"python train_sb3.py run_dir=runs/a\ b rollouts=ray progress_bar=false" in done.stdout
    assert not (folder / "started").exists()
    bare = {key: value for key, value in environment.items() if not key.startswith("SLURM")}
    outside = submit((folder, bare), "train_sb3.py", DRY_RUN="1", PATH=os.environ["PATH"])
    assert outside.returncode == 0 and "--address localhost:20000 --min-nodes 1" in outside.stdout


def test_no_script_is_an_error_of_two_lines(session):
    done = submit(session)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no script given\n  -> sbatch scripts/ray.slurm")


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_that_ends_by_itself_is_not_queued_again(session, code):
    folder, _ = session
    done = submit(session, "train.py", str(code))
    assert done.returncode == code
    assert not (folder / "requeued").exists() and not list(folder.glob(".ray-*"))
    assert (folder / "arguments").read_text() == f"{code} rollouts=ray progress_bar=false 127.0.0.1:20077"


def near_the_limit(session, **more):
    """Starts a job, sends what SLURM sends before the limit, and waits for the job's end; its exit code."""
    folder, environment = session
    command = ["bash", str(SCRIPT), "train.py", "go", "wait"]
    child = subprocess.Popen(command, cwd=folder, env={**environment, **more}, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 90
        while not (folder / "started").exists():
            assert child.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        child.send_signal(signal.SIGUSR1)
        return child.wait(timeout=90)
    finally:
        child.kill()


def test_at_the_limit_it_saves_is_queued_again_and_goes_on(session):
    folder, _ = session
    assert near_the_limit(session) == 0
    assert (folder / "checkpoint").read_text() == "saved"
    assert (folder / "requeued").read_text() == "requeue 77\n"
    assert submit(session, "train.py", "go", "wait", SLURM_RESTART_COUNT="1").returncode == 0
    assert (folder / "requeued").read_text() == "requeue 77\n"  # it ended: that was all


def test_it_is_not_queued_again_for_ever(session):
    folder, _ = session
    assert near_the_limit(session, SLURM_RESTART_COUNT="5", MAX_RESTARTS="5") == 143
    assert not (folder / "requeued").exists()


def test_the_launcher_queues_again_and_warns_in_time():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    store_environments()
    with initialize_config_dir(str((ROOT / "configs").resolve()), version_base="1.3"):
        config = compose("train", overrides=["hydra/launcher=slurm"], return_hydra_config=True)
    launcher = OmegaConf.to_container(config.hydra.launcher)
    assert launcher["_target_"].endswith("SlurmLauncher")
    assert launcher["max_num_timeout"] > 0 and launcher["signal_delay_s"] >= 120


@pytest.mark.slow
def test_a_sweep_is_submitted_as_an_array(session):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    folder, environment = session
    sweep = ["-m", "hydra/launcher=slurm", "experiment=smoke", "seed=0,1", "run_dir=here/${seed}"]
    subprocess.run(
        [sys.executable, str(ROOT / "train_sb3.py"), *sweep],
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=300,
        check=False,
    )
    submitted = (folder / "submitted").read_text()
    assert re.search(r"#SBATCH --array=0-1", submitted)
    for needed in ("--signal=USR2@300", "--time=240", "--gpus-per-node=1", "--open-mode=append"):
        assert f"#SBATCH {needed}" in submitted


@pytest.mark.slow
def test_a_sweep_of_processes_is_its_dry_run(tmp_path):
    """Two small trainings by the launcher's local twin: the same pickling, folders and signals, without SLURM."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = ["-m", "hydra/launcher=submitit_local", "seed=0,1", f"run_dir={tmp_path}/run_${{seed}}"]
    small = ["experiment=smoke", "progress_bar=false", "tabular=null", "report=null", "total_timesteps=32"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_sb3.py"), *sweep, *small, f"hydra.sweep.dir={tmp_path}/sweep"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert all((tmp_path / f"run_{seed}/policy/policy.safetensors").is_file() for seed in (0, 1))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ray", path=str(Path(sys.executable).parent)) is None, reason="needs Ray's command")
def test_a_real_ray_is_started_saved_at_the_limit_and_resumed(session):
    """``ray symmetric-run`` on one machine; note that it ends with ``ray stop``, which ends every Ray of this user."""
    folder, environment = session
    (folder / "bin" / "ray").unlink()
    environment = {
        **environment,
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_NNODES": "1",
        "SLURM_CPUS_PER_TASK": "2",
        "OMP_NUM_THREADS": "1",
    }
    run = folder / "run"
    small = ["experiment=smoke", "tabular=null", "report=null", "total_timesteps=160", "lanes=4", f"run_dir={run}"]
    command = ["bash", str(SCRIPT), "train_sb3.py", *small, "ppo.n_steps=8", "checkpoint_every=32"]
    log = folder / "log"

    def start(**more):
        with log.open("w") as file:
            return subprocess.Popen(
                command, cwd=ROOT, env={**environment, **more}, stdout=file, stderr=subprocess.STDOUT
            )

    child = start()
    try:
        until = time.monotonic() + 900
        while not list(run.glob("checkpoints/step_*")):
            assert child.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.2)
        child.send_signal(signal.SIGUSR1)
        code = child.wait(timeout=300)
    finally:
        child.kill()
    assert code == 0 and ": requeued" in log.read_text(), log.read_text()[-3000:]
    assert start(SLURM_RESTART_COUNT="1").wait(timeout=900) == 0, log.read_text()[-3000:]
    assert re.search(r"resumed at decision (\d+) of 160", log.read_text()), log.read_text()[-3000:]
    assert (run / "policy/policy.safetensors").is_file()
    (ROOT / "requeued").unlink()

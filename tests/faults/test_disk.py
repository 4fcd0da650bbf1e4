"""Checkpoints on disks that are full, read-only or damaged: the last valid one survives and is found."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from addiffusion_env.agents import training
from addiffusion_env.agents.callbacks import Checkpointer
from addiffusion_env.agents.checkpoints import Snapshot, checkpoints, read_latest, restore
from addiffusion_env.agents.factory import make_rollouts
from addiffusion_env.agents.sb3_zip import import_zip
from addiffusion_env.errors import ResumeError, RunFolderError, UntrustedFileError, WeightsError
from addiffusion_env.files import whole_file

ENV = {"steps": 2, "refine": "off"}
PPO = {"n_steps": 2, "batch_size": 4, "n_epochs": 1}


@pytest.fixture(scope="module")
def trained():
    """An agent after one update, and its environments."""
    env = make_rollouts({"kind": "local"}, 2, 0, ENV)
    model = training.make_model("maskable_ppo", env, PPO, 0, "cpu")
    model.learn(4)
    return model, env


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MiB; needs permission to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def snapshot(trained, step):
    model, env = trained
    made = Snapshot(model, env)
    made.step = made.state["step"] = step
    return made


def test_a_saved_checkpoint_is_loaded_unchanged(trained, tmp_path):
    model, env = trained
    Snapshot(model, env, [{"nfe": 2.0, "actions": [0, 1]}]).write(tmp_path)
    state = read_latest(tmp_path)
    other_env = make_rollouts({"kind": "local"}, 2, 9, ENV)
    other = training.make_model("maskable_ppo", other_env, PPO, 7, "cpu")
    restore(other, other_env, state)
    ours, theirs = model.get_parameters(), other.get_parameters()
    assert all(torch.equal(ours["policy"][name], theirs["policy"][name]) for name in ours["policy"])
    assert str(ours["policy.optimizer"]["state"]) == str(theirs["policy.optimizer"]["state"])
    assert other.num_timesteps == model.num_timesteps and state["episodes"] == [{"nfe": 2.0, "actions": [0, 1]}]
    assert all((other._last_obs[key] == model._last_obs[key]).all() for key in model._last_obs)


def fill(path):
    """Writes until the disk is full."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


def test_a_full_disk_keeps_the_last_good_checkpoint(trained, small_disk):
    good = snapshot(trained, 8).write(small_disk / "checkpoints")
    content = good.read_bytes()
    fill(small_disk / "filler")
    for step in (16, 24, 32):
        with pytest.raises(RunFolderError, match=r"cannot write checkpoint .*\n  -> free space"):
            snapshot(trained, step).write(small_disk / "checkpoints")
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == [good.name]
    assert good.read_bytes() == content and read_latest(small_disk / "checkpoints")["step"] == 8
    (small_disk / "filler").unlink()
    snapshot(trained, 40).write(small_disk / "checkpoints")
    assert read_latest(small_disk / "checkpoints")["step"] == 40


def test_a_read_only_folder_keeps_the_last_good_checkpoint(trained, small_disk):
    snapshot(trained, 8).write(small_disk / "checkpoints")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(RunFolderError, match="Read-only file system"):
        snapshot(trained, 16).write(small_disk / "checkpoints")
    with pytest.raises(RunFolderError, match="choose another with run_dir"):
        training.run_folder(small_disk)
    assert read_latest(small_disk / "checkpoints")["step"] == 8


def test_training_continues_on_a_full_disk_and_ends_with_the_error(tmp_path, monkeypatch):
    env = make_rollouts({"kind": "local"}, 2, 0, ENV)
    model = training.make_model("maskable_ppo", env, PPO, 0, "cpu")
    checkpointer = Checkpointer(tmp_path, every=4)
    true, attempts = Snapshot.write, []

    def write(self, folder):
        attempts.append(self.step)
        if self.step > 4:
            raise RunFolderError(f"cannot write checkpoint {self.step}: No space left on device", "free space")
        return true(self, folder)

    monkeypatch.setattr(Snapshot, "write", write)
    with (
        pytest.warns(UserWarning, match="cannot write checkpoint 8.*continues and tries again"),
        pytest.raises(RunFolderError, match="cannot write checkpoint 16"),
    ):
        model.learn(16, callback=[checkpointer])
    assert attempts == [4, 8, 12, 16] and checkpointer.failures == 2
    checkpointer.rescue()  # warns that it cannot, and does not hide the error
    assert read_latest(tmp_path)["step"] == 4


def damaged(data, rng):
    """A file damaged as by a crash or a bad disk."""
    place = rng.randrange(len(data))
    kind = rng.choice(["cut", "cut", "zeros", "flip", "empty", "middle"])
    if kind == "cut":
        return kind, data[:place]
    if kind == "zeros":  # the right length, but the content was never written
        return kind, data[:place] + b"\0" * (len(data) - place)
    if kind == "flip":
        return kind, data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
    return kind, b"" if kind == "empty" else data[:place] + data[place + rng.randrange(1, 4096) :]


def test_damaged_checkpoints_are_skipped_and_never_half_read(trained, tmp_path):
    old, new = snapshot(trained, 8).write(tmp_path), snapshot(trained, 16).write(tmp_path)
    whole = new.read_bytes()
    whole_state = str(read_latest(tmp_path))
    rng, outcomes = random.Random(0), Counter()
    for _ in range(60):
        kind, content = damaged(whole, rng)
        new.write_bytes(content)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            state = read_latest(tmp_path)
        if state["step"] == 8:
            assert any(f"{new.name} cannot be read" in str(item.message) for item in told)
            outcomes[f"{kind} skipped"] += 1
        else:  # a bit that is never read (padding, a date)
            assert str(state) == whole_state
            outcomes[f"{kind} harmless"] += 1
    assert outcomes["cut skipped"] > 5 and outcomes["flip skipped"] > 2, outcomes
    assert outcomes["cut harmless"] == 0, outcomes
    old.write_bytes(b"")
    new.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(ResumeError, match="none of the 2 checkpoints"):
        read_latest(tmp_path)


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_with_code_in_it_is_not_run(trained, tmp_path):
    run = tmp_path / "checkpoints"
    snapshot(trained, 8).write(run)
    exploded = tmp_path / "exploded"
    torch.save({"format": 1, "step": 99, "model": Bomb(exploded)}, run / "step_000000099.pt")
    (run / "step_000000100.pt").write_bytes(pickle.dumps(Bomb(exploded)))
    with zipfile.ZipFile(run / "step_000000101.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(exploded)))
    with pytest.warns(UserWarning, match="cannot be read"):
        assert read_latest(run)["step"] == 8
    assert not exploded.exists()


def test_a_checkpoint_of_another_agent_is_refused(trained, tmp_path):
    snapshot(trained, 8).write(tmp_path)
    one_more_number = {**ENV, "cost_per_nfe": [0.0, 0.1]}  # in the observation
    env = make_rollouts({"kind": "local"}, 2, 0, one_more_number)
    model = training.make_model("maskable_ppo", env, PPO, 0, "cpu")
    with pytest.raises(ResumeError, match="does not fit this run"):
        restore(model, env, read_latest(tmp_path))


@pytest.mark.parametrize("trust", [False, None, 1, "yes"])
def test_a_zip_of_sb3_needs_trust_to_be_explicit(trust, tmp_path):
    with pytest.raises(
        UntrustedFileError, match="unpickles Python objects, which can run any code\n  -> pass trust=True"
    ):
        import_zip(tmp_path / "model.zip", trust=trust)
    with pytest.raises(WeightsError, match="no readable zip"):  # it is opened
        import_zip(tmp_path / "model.zip", trust=True)


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with contextlib.suppress(RunFolderError), whole_file(path) as file:
        file.write(b"half")
        raise RunFolderError("no space", "free some")
    assert path.read_bytes() == b"before" and [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_process_over_its_quota_leaves_no_partial_file(tmp_path):
    """RLIMIT_FSIZE acts like a quota, without root."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from addiffusion_env.files import whole_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n  with whole_file(Path(sys.argv[1])) as file: file.write(b'x' * 100_000)\n"
        "except OSError as error: print(error.strerror)"
    )
    path = tmp_path / "file"
    path.write_bytes(b"before")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "File too large", done.stderr
    assert path.read_bytes() == b"before" and [item.name for item in tmp_path.iterdir()] == ["file"]


def test_only_the_newest_checkpoints_are_kept(trained, tmp_path):
    (tmp_path / ".step_000000001.pt.4.5.part").write_bytes(b"of a process that was killed")
    for step in (8, 16, 24):
        snapshot(trained, step).write(tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000000016.pt", "step_000000024.pt"]
    assert len(list(tmp_path.iterdir())) == 2

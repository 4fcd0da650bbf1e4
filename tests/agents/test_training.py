"""Training end to end in small: it learns, logs, saves, resumes to the same end, and refuses bad folders."""

import json
import os
import random
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train_sb3
from addiffusion_env.agents import training
from addiffusion_env.agents.callbacks import Checkpointer, EpisodeLog, pattern_entropy
from addiffusion_env.agents.checkpoints import checkpoints, read_latest, set_rng_state
from addiffusion_env.agents.factory import make_rollouts
from addiffusion_env.agents.policy_file import WEIGHTS_FILE, load_config, load_policy, save_policy
from addiffusion_env.agents.tabular_training import FRONTIER_COSTS
from addiffusion_env.config import compose_config
from addiffusion_env.errors import AdDiffusionError, NumericsError, ResumeError, RunFolderError, WeightsError

ROOT = Path(__file__).parents[2]
ENV = {"steps": 2, "refine": {"preset": "resample_short"}, "cost_per_nfe": 0.01}
PPO = {"n_steps": 2, "batch_size": 4, "n_epochs": 1}
REPLAY = {"learning_starts": 4, "batch_size": 4, "buffer_size": 16, "train_freq": 2, "target_update_interval": 8}
SETTINGS = {"dqn": REPLAY, "qrdqn": REPLAY, "a2c": {"n_steps": 4}, "trpo": {"n_steps": 4, "batch_size": 8}}


def learn(folder, total, algorithm="maskable_ppo", resume=True, stop_after=None):
    env = make_rollouts({"kind": "local"}, 2, 0, ENV)
    settings = SETTINGS.get(algorithm, PPO)
    model, state = training.resume_or_make(algorithm, env, settings, 0, "cpu", folder, resume)
    log = EpisodeLog({"lanes": 2})
    log.restore(state)
    checkpointer = Checkpointer(folder / "checkpoints", every=4, log=log)
    callbacks = [log, checkpointer]
    if stop_after is not None:
        callbacks.insert(0, Interrupt(checkpointer, stop_after))
    model.learn(total - model.num_timesteps, callback=callbacks, reset_num_timesteps=False)
    env.close()
    return model, state is not None


class Interrupt(EpisodeLog):
    """Sends the signal's effect in the middle of a rollout."""

    def __init__(self, checkpointer, after):
        super().__init__({})
        self.checkpointer, self.after = checkpointer, after

    def _on_step(self):
        if self.num_timesteps >= self.after and self.checkpointer.interrupted is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return True


def parameters(model):
    return torch.cat([value.flatten() for value in model.policy.state_dict().values()])


@pytest.mark.parametrize("algorithm", [pytest.param("ppo", marks=pytest.mark.slow), "maskable_ppo"])
def test_an_interrupted_run_ends_like_an_unbroken_one(tmp_path, algorithm):
    whole, _ = learn(tmp_path / "whole", 12, algorithm)
    learn(tmp_path / "broken", 12, algorithm, stop_after=6)  # in the middle of the second rollout of 4
    [saved] = checkpoints(tmp_path / "broken/checkpoints")[-1:]
    assert saved.name == "step_000000004.pt"
    again, resumed = learn(tmp_path / "broken", 12, algorithm)
    assert resumed and again.num_timesteps == whole.num_timesteps == 12
    assert torch.equal(parameters(again), parameters(whole))
    ours, theirs = again.policy.optimizer.state_dict(), whole.policy.optimizer.state_dict()
    assert torch.equal(ours["state"][0]["exp_avg"], theirs["state"][0]["exp_avg"])


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["dqn", "qrdqn", "recurrent_ppo", "a2c", "trpo"])
def test_an_interrupted_run_of_another_algorithm_ends_like_an_unbroken_one(tmp_path, algorithm):
    """A replay buffer of eight steps, past its end, the target network and the memory are those of the unbroken run."""
    whole, _ = learn(tmp_path / "whole", 40, algorithm)
    learn(tmp_path / "broken", 40, algorithm, stop_after=22)
    assert checkpoints(tmp_path / "broken/checkpoints")[-1].name < "step_000000022.pt"
    again, resumed = learn(tmp_path / "broken", 40, algorithm)
    assert resumed and again.num_timesteps == whole.num_timesteps == 40
    assert torch.equal(parameters(again), parameters(whole))
    if algorithm in ("dqn", "qrdqn"):
        assert again._n_calls == whole._n_calls and again.exploration_rate == whole.exploration_rate
        np.testing.assert_array_equal(again.replay_buffer.rewards, whole.replay_buffer.rewards)


def scalars_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
        if tag != "time/fps"
    }


def test_the_scalars_of_a_resumed_run_are_those_of_an_unbroken_one(tmp_path):
    """Those of the last update before the checkpoint too, which are written after the next rollout."""
    learn(tmp_path / "whole", 24)
    learn(tmp_path / "broken", 24, stop_after=14)
    assert learn(tmp_path / "broken", 24)[1]
    whole, broken = (scalars_of(tmp_path / name) for name in ("whole", "broken"))
    assert len(whole["train/loss"]) > 1
    assert broken == whole


def test_equal_policies_are_equal_files(tmp_path):
    """Of networks whose parts share a features extractor, which the file has once."""
    model, _ = learn(tmp_path / "run", 4)
    config = load_config(ROOT / "addiffusion_env/agents/pretrained/emoji")
    for name in ("one", "other"):
        save_policy(tmp_path / name, model.policy, config)
    one, other = ((tmp_path / name / WEIGHTS_FILE).read_bytes() for name in ("one", "other"))
    assert one == other


def test_tensorboard_has_the_names(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    learn(tmp_path, 8)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    wanted = {
        "rollout/ep_rew_mean",
        "env/nfe",
        "env/quality",
        "env/stop_fraction",
        "env/refine_fraction",
        "env/pattern_entropy",
    }
    assert wanted <= scalars
    assert {"reward/terminal_bonus", "reward/nfe_cost"} <= scalars
    assert events.Tags()["histograms"] == ["env/nfe_histogram"]
    assert {"images/grid", "images/action_timelines"} <= set(events.Tags()["images"])


def test_a_damaged_checkpoint_is_skipped(tmp_path):
    learn(tmp_path, 8)
    kept = checkpoints(tmp_path / "checkpoints")
    assert [path.name for path in kept] == ["step_000000004.pt", "step_000000008.pt"]
    whole = kept[-1].read_bytes()
    kept[-1].write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=r"step_000000008.pt cannot be read .*trying the previous one"):
        state = read_latest(tmp_path / "checkpoints")
    assert state["step"] == 4
    kept[0].write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(ResumeError, match="none of the 2 checkpoints"):
        read_latest(tmp_path / "checkpoints")


def test_rng_round_trip():
    from addiffusion_env.agents.checkpoints import rng_state

    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    state = rng_state()
    first = draw()
    set_rng_state(state)
    assert first == draw()


def test_a_changed_configuration_is_not_resumed(tmp_path):
    training.remember_config(tmp_path, {"lanes": 2, "total_timesteps": 8}, resume=True)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step_000000008.pt").write_bytes(b"")
    training.remember_config(tmp_path, {"lanes": 2, "total_timesteps": 16}, resume=True)  # may change
    with pytest.raises(ResumeError, match=r"lanes: 2 -> 4.*\n  -> put those keys back"):
        training.remember_config(tmp_path, {"lanes": 4, "total_timesteps": 8}, resume=True)
    assert json.loads((tmp_path / "config.json").read_text())["lanes"] == 2


def test_a_run_with_removed_keys_is_resumed_where_they_changed_nothing(tmp_path):
    def resume(old, new):
        text = json.dumps(old)
        (tmp_path / "config.json").write_text(text)
        training.remember_config(tmp_path, new, resume=True)
        return (tmp_path / "config.json").read_text() != text

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step_000000008.pt").write_bytes(b"")
    now = {"lanes": 2, "tabular": {"images": 4}}
    assert resume({**now, "vec_env": "lanes"}, now)
    assert resume({**now, "tabular": {"images": 4, "prompt_seed": 101, "watch_every": 5}}, now)
    with pytest.raises(ResumeError, match=r"tabular\.prompt_seed: 7 -> nothing"):
        resume({**now, "tabular": {"images": 4, "prompt_seed": 7}}, now)
    with pytest.raises(ResumeError, match="made with vec_env=dummy, which no longer exists"):
        resume({**now, "vec_env": "dummy"}, now)
    assert json.loads((tmp_path / "config.json").read_text())["vec_env"] == "dummy"  # for the version that reads it


def test_of_a_changed_configuration_only_the_changed_keys_are_shown(tmp_path):
    run = {
        "lanes": 2,
        "env": {"steps": 6, "cost_per_nfe": [0.0, 0.03], "refine": {"preset": "resample_keep_best"}},
        "tabular": None,
    }
    training.remember_config(tmp_path, run, resume=True)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step_000000008.pt").write_bytes(b"")
    changed = {**run, "env": {**run["env"], "steps": 5, "refine": {"preset": "resample_keep_best", "limit": 2}}}
    with pytest.raises(ResumeError) as caught:
        training.remember_config(tmp_path, changed, resume=True)
    assert "configuration (env.steps: 6 -> 5; env.refine.limit: nothing -> 2)" in caught.value.cause


def test_an_unwritable_run_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot be written.*\n  -> choose another with run_dir"):
        training.run_folder(tmp_path / "file" / "run")


def test_bad_algorithms_and_settings():
    with pytest.raises(AdDiffusionError, match="did you mean 'ppo'"):
        training.make_model("pppo", None, {}, 0, "cpu")
    with pytest.raises(AdDiffusionError, match="ppo has no setting 'ent_coeff'\n  -> did you mean 'ent_coef'"):
        training.make_model("ppo", None, {"ent_coeff": 0.1}, 0, "cpu")


def test_an_error_in_training_leaves_a_checkpoint(tmp_path, monkeypatch):
    env = make_rollouts({"kind": "local"}, 2, 0, ENV)
    model, _ = training.resume_or_make("maskable_ppo", env, PPO, 0, "cpu", tmp_path, True)
    checkpointer = Checkpointer(tmp_path / "checkpoints", every=1000)
    handler = signal.getsignal(signal.SIGTERM)
    calls = []

    def broken(*args):
        calls.append(args)
        if len(calls) > 5:
            raise NumericsError("the denoiser returned NaN", "mend it")
        return true(*args)

    engine = env.venv.lanes.episodes.engine
    true = engine.evaluate
    monkeypatch.setattr(engine, "evaluate", broken)
    with pytest.raises(NumericsError):
        model.learn(24, callback=[checkpointer], reset_num_timesteps=False)
    checkpointer.rescue()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert len(checkpoints(tmp_path / "checkpoints")) == 1


def test_the_exported_policy_is_the_trained_one(tmp_path):
    model, _ = learn(tmp_path, 4)
    config = {"env": ENV, "plugins": [], "algorithm": "maskable_ppo", "seed": 0, "run_dir": str(tmp_path)}
    folder = training.export_policy(tmp_path / "policy", model, config)
    policy, described = load_policy(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "policy.safetensors"]
    observation = {key: torch.randn(3, box.shape[0]) for key, box in described.space().spaces.items()}
    expected = model.policy.get_distribution(observation).distribution.probs
    torch.testing.assert_close(policy.get_distribution(observation).distribution.probs, expected)
    (folder / "policy.safetensors").write_bytes(b"half")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_policy(folder)
    with pytest.raises(WeightsError, match="no policy in"):
        load_policy(tmp_path)


def test_pattern_entropy():
    assert pattern_entropy([(0, 1)] * 5) == 0
    assert pattern_entropy([(0,), (1,), (2,), (0, 1)]) == pytest.approx(2)


def run_script(*arguments, **kwargs):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "train_sb3.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **kwargs)


def run_here(monkeypatch, folder, *arguments):
    """The script in this process: another one would spend most of its time on imports."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train_sb3.py", *arguments])
    runpy.run_path(str(ROOT / "train_sb3.py"), run_name="__main__")


def test_the_script_trains_and_reports(tmp_path, monkeypatch, capsys):
    small = ["lanes=2", "ppo.n_steps=4", "ppo.batch_size=8", "total_timesteps=16", "checkpoint_every=8"]
    small += ["report.prompts=1", "progress_bar=false"]
    run_here(monkeypatch, tmp_path, "experiment=smoke", f"run_dir={tmp_path / 'run'}", *small)
    said = capsys.readouterr().out
    assert "TensorBoard: tensorboard --logdir" in said and "policy:" in said and "report:" in said
    assert (tmp_path / "run/policy/policy.safetensors").is_file()
    assert "<h2>Images of the same prompts</h2>" in (tmp_path / "run/report/report.html").read_text(encoding="utf-8")
    config = load_config(tmp_path / "run/policy")
    assert len(config.frontier) == FRONTIER_COSTS
    assert config.frontier_prompts == "2 prompts of the training source that were held out of training"


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["dqn", "recurrent_ppo"])
def test_a_run_of_another_algorithm_is_resumed_evaluated_and_used(tmp_path, algorithm):
    from addiffusion_env import AdaptivePipeline

    small = ["total_timesteps=32", "lanes=2", "progress_bar=false", "report.prompts=2", "report.samplers=[fixed:2]"]
    small += ["algorithm_kwargs.learning_starts=8"] if algorithm == "dqn" else ["ppo.n_steps=4", "ppo.batch_size=8"]
    run = tmp_path / "run"
    for total in (16, 32):
        done = run_script(f"experiment={algorithm}", *small, f"total_timesteps={total}", f"run_dir={run}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "resumed at decision 16 of 32" in done.stdout and (run / "report/report.html").is_file()
    assert load_config(run / "policy").provenance["decisions"] == 32
    pipe = AdaptivePipeline.from_pretrained(run)
    prompts = ["a photo of a dog", "two red cups"]
    assert pipe(prompts).actions == [pipe(prompt).actions[0] for prompt in prompts]


def test_the_script_says_what_is_wrong_in_two_lines(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as left:
        run_here(monkeypatch, tmp_path, "experiment=smoke", "lnaes=3")
    assert left.value.code == 2 and not list(tmp_path.iterdir())
    error = capsys.readouterr().err
    assert error.startswith("error: the configuration has no key 'lnaes'\n  -> did you mean 'lanes'?")


def test_a_run_folder_that_cannot_be_written_is_said_before_anything_is_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        train_sb3.main(compose_config(train_sb3.CONFIGS, "train", ["experiment=smoke", "run_dir=/proc/nowhere"]))
    assert left.value.code == 2 and not list(tmp_path.iterdir())
    assert capsys.readouterr().err.startswith("error: run folder /proc/nowhere cannot be written")


def test_frontier_falls_with_cost():
    log = EpisodeLog({})
    assert log.frontier() == []
    rng = np.random.default_rng(0)
    for cost_per_nfe in rng.uniform(0, 0.03, 160):
        log.episodes.append({"cost_per_nfe": float(cost_per_nfe), "nfe": float(12 - 200 * cost_per_nfe + rng.normal())})
    frontier = log.frontier()
    assert [cost_per_nfe for cost_per_nfe, _ in frontier] == sorted(cost_per_nfe for cost_per_nfe, _ in frontier)
    assert [nfe for _, nfe in frontier] == sorted((nfe for _, nfe in frontier), reverse=True)
    assert frontier[0][1] == pytest.approx(12 - 200 * frontier[0][0], abs=0.6)

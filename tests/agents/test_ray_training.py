"""Training on Ray workers: one is killed and one hangs, training continues, and resumes with more workers."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from addiffusion_env.agents import table_worker, training
from addiffusion_env.agents.callbacks import Checkpointer, EpisodeLog
from addiffusion_env.agents.factory import make_rollouts
from addiffusion_env.agents.recording import Recording, TabularConfig
from addiffusion_env.distributed import task_round
from addiffusion_env.distributed.actor_pool import RayConfig, start_ray

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

ENV = {"steps": 2, "refine": "resample_short", "cost_per_nfe": 0.01}
PPO = {"n_steps": 4, "batch_size": 8, "n_epochs": 1}


@pytest.fixture(scope="module", autouse=True)
def own_ray():
    start_ray(RayConfig())
    yield
    ray.shutdown()


class Attacker(BaseCallback):
    """Sends signals to workers' processes: decision -> (worker, signal)."""

    def __init__(self, attacks):
        super().__init__()
        self.attacks = dict(attacks)

    def _on_step(self):
        if self.num_timesteps in self.attacks:
            worker, number = self.attacks.pop(self.num_timesteps)
            os.kill(self.training_env.unwrapped.pool.actors[worker].pid, number)
        return True


def learn(folder, total, workers, attacks=(), timeout=600):
    env = make_rollouts({"kind": "ray", "workers": workers, "timeout": timeout}, 4, 0, ENV)
    model, state = training.resume_or_make("maskable_ppo", env, PPO, 0, "cpu", folder, True)
    log, attacker = EpisodeLog({}), Attacker(attacks)
    callbacks = [log, Checkpointer(folder / "checkpoints", 16, log), attacker]
    model.learn(total - model.num_timesteps, callback=callbacks, reset_num_timesteps=False)
    assert not attacker.attacks
    losses, log_episodes = env.unwrapped.losses, list(log.episodes)
    env.close()
    return model, state, losses, log_episodes


def test_workers_are_lost_training_goes_on_and_resumes_with_more_of_them(tmp_path):
    attacks = {8: (0, signal.SIGKILL), 24: (1, signal.SIGSTOP)}
    model, _, losses, episodes = learn(tmp_path, 32, 2, attacks, timeout=60)
    assert model.num_timesteps == 32
    assert (losses.deaths, losses.hangs, losses.lost_episodes) == (1, 1, 4)
    assert episodes
    again, state, losses, _ = learn(tmp_path, 48, 4)
    assert state["step"] == 32 and again.num_timesteps == 48
    assert losses.lost_episodes == 4  # of the whole run
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"rollouts/deaths", "rollouts/hangs", "rollouts/lost_episodes"} <= set(events.Tags()["scalars"])
    assert events.Scalars("rollouts/lost_episodes")[-1].value == 4


def test_attempts_are_recorded_in_workers_of_which_one_dies(tmp_path):
    """The table is that of this process: shards are recorded whole, wherever."""
    environment = {
        "steps": 3,
        "decide_at": [2],
        "check_finished": True,
        "early_exit_steps": 1,
        "refine": {"preset": "resample_keep_best", "return_to": 2, "limit": 1},
        "prompt_options": {"split": "train"},
    }
    local = Recording(environment, TabularConfig(attempts=2, shard_size=2), tmp_path, lanes=2)
    prompts = local.settings.prompt_source().take(6)
    here = local.record(prompts, "here")
    assert len(list((tmp_path / "here").iterdir())) == 3

    class Dying(task_round.TaskRound):
        killed = False

        def _give(self, worker, task):
            super()._give(worker, task)
            if not Dying.killed:
                Dying.killed = True
                os.kill(self.pool.actors[worker].pid, signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(table_worker, "TaskRound", Dying)
        remote = replace(local, lanes=4, rollouts={"kind": "ray", "workers": 2})
        there = remote.record(prompts, "there")
    assert Dying.killed and there.identity == here.identity and there.prompt_ids == here.prompt_ids
    for name in ("preference", "clip_score", "nfe", "clip_image"):
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name), err_msg=name)
    with pytest.MonkeyPatch.context() as patched:  # everything is there: no worker is started
        patched.setattr(table_worker, "ActorPool", None)
        remote.record(prompts, "there")

"""A pool of Ray actors makes the records that the plain loop makes, whoever dies meanwhile."""

import os
import signal
from dataclasses import replace

import pytest

from addiffusion_env.distributed import task_round
from addiffusion_env.distributed.actor_pool import RayConfig, start_ray
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import AdDiffusionError, ConfigError, WorkerError
from addiffusion_env.evaluation import ray_pool
from addiffusion_env.evaluation.judges import Judges
from addiffusion_env.evaluation.ray_pool import ImageWorker, maker
from addiffusion_env.evaluation.runner import EvaluationContext, carry_out, in_turn, plan
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.samplers import make_sampler

ray = pytest.importorskip("ray")

SETTINGS = EnvSettings(steps=3)
SAMPLERS_COMPARED = ("fixed:2", "random:0.4")
JUDGES = ["emoji_detector", "sharpness"]
SEEDS = [0, 1]


@pytest.fixture(scope="module", autouse=True)
def own_ray():
    start_ray(RayConfig())
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def context(emoji, scorers):
    process = SETTINGS.process(emoji.capabilities, emoji.name)
    return EvaluationContext(emoji, scorers, process, Judges.of(JUDGES))


def run(context, prompts, folder, rollouts, **options):
    samplers = [make_sampler(spec) for spec in SAMPLERS_COMPARED]
    make = maker(rollouts, samplers, SETTINGS, JUDGES)
    return carry_out(
        plan(samplers, prompts, SEEDS, context),
        context,
        folder,
        make=make,
        **{"max_lanes": 2, "shard_size": 2, **options},
    )


def settled(records):
    """Records without what is measured."""
    return [replace(record, seconds=0.0, peak_memory=0) for record in records]


@pytest.fixture(scope="module")
def plain(context, prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return run(context, prompts[:2], folder, {"kind": "local"}, keep_images=True), folder


def test_records_are_those_of_the_plain_loop_though_a_worker_dies(plain, context, prompts, tmp_path, monkeypatch):
    give, killed, told = task_round.TaskRound._give, [], []

    def give_and_kill(self, worker, task):
        give(self, worker, task)
        if not killed:  # just after it was given its first jobs
            killed.append(self.pool.actors[worker].pid)
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(task_round.TaskRound, "_give", give_and_kill)
    found = run(context, prompts[:2], tmp_path, {"kind": "ray", "workers": 2}, keep_images=True, on_records=told.extend)
    assert killed
    assert settled(found) == settled(plain[0])  # groups are made whole wherever they are: equal to the last bit
    assert sorted(record.uid for record in told) == sorted(record.uid for record in found)
    uids = [record.uid for record in found]
    images = RecordStore(tmp_path / "records").images(uids)
    assert images == RecordStore(plain[1] / "records").images(uids) and len(images) == len(uids)
    monkeypatch.undo()
    monkeypatch.setattr(ray_pool, "ActorPool", None)  # nothing is left to generate: no worker is started
    assert run(context, prompts[:2], tmp_path, {"kind": "ray", "workers": 2}) == found


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_records_do_not_depend_on_the_number_of_workers(workers, plain, context, prompts, tmp_path):
    found = run(context, prompts[:2], tmp_path, {"kind": "ray", "workers": workers, "cpus": 0.5})
    assert settled(found) == settled(plain[0])


@pytest.mark.slow
def test_jobs_that_hang_everybody_are_an_error_and_the_rest_is_kept(context, prompts, tmp_path):
    quick = {"kind": "ray", "workers": 1, "timeout": 0.001, "patience": 1}
    with pytest.raises(WorkerError, match="lost"):
        run(context, prompts[:1], tmp_path, quick)
    assert len(run(context, prompts[:1], tmp_path, {"kind": "local"})) == 4


def test_a_worker_with_other_weights_or_packages_is_refused(context, prompts):
    """Its records would not be of the model that they say."""
    samplers = [make_sampler("fixed:2")]
    planned = plan(samplers, prompts[:1], [0], context)[0].identity
    arguments = (ray.cloudpickle.dumps(samplers), SETTINGS, JUDGES, prompts[:1], [0])
    ImageWorker().setup(*arguments, planned)
    other = {**planned, "packages": {**planned["packages"], "diffusers": "0.1"}}
    with pytest.raises(WorkerError, match=r"than planned: packages\.diffusers: 0\.1"):
        ImageWorker().setup(*arguments, other)


def test_kinds_and_settings_are_checked():
    assert maker({"kind": "local"}, [], SETTINGS, []) is in_turn
    with pytest.raises(AdDiffusionError, match=r"unknown rollouts\.kind 'rya'\n  -> did you mean 'ray'"):
        maker({"kind": "rya"}, [], SETTINGS, [])
    with pytest.raises(ConfigError, match="rollouts=local has no setting 'workers'"):
        maker({"kind": "local", "workers": 2}, [], SETTINGS, [])
    with pytest.raises(ConfigError, match="did you mean 'workers'"):
        maker({"kind": "ray", "worker": 2}, [], SETTINGS, [])
    assert RayConfig.of({"kind": "ray", "workers": 3}).workers == 3

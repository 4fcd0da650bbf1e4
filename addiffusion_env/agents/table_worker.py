"""Ray workers that record shards of a table of attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from addiffusion_env.distributed.actor_pool import ActorPool, BaseWorker, RayConfig
from addiffusion_env.distributed.task_round import Task, TaskRound
from addiffusion_env.engine.lane import FaultCount
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import AdDiffusionError
from addiffusion_env.prompts import Prompt
from addiffusion_env.tabular.recorder import Recorder, recorder_of
from addiffusion_env.tabular.table import AttemptTable

Images = Sequence[tuple[Prompt, int]]
"""(prompt, seed) pairs."""


def record_in_workers(
    missing: Sequence[tuple[Images, Path]],
    recorder: Recorder,
    settings: EnvSettings,
    lanes: int,
    rollouts: Mapping[str, Any],
) -> None:
    """Records missing shards in a pool of workers; each shard is written when it arrives."""
    config, attempts = RayConfig.of(rollouts), recorder.attempts
    lanes = max(1, lanes // config.workers)
    config = replace(config, workers=min(config.workers, len(missing)))
    arguments = (settings, attempts, recorder.identity)
    pool = ActorPool(config, TableWorker, [arguments] * config.workers, settings.device)
    tasks = [
        # One attempt of each wave of lanes may take as long as an image of an evaluation.
        Task((chunk, lanes, str(path)), len(chunk), config.timeout * attempts * -(-len(chunk) // lanes))
        for chunk, path in missing
    ]
    total, done = sum(len(chunk) for chunk, _ in missing), 0
    with closing(pool):
        tasks_given = TaskRound(pool, "record", tasks)
        for task, (table, dropped) in tasks_given.answers():
            chunk, _, path = task.arguments
            table.save(Path(path))
            done += len(chunk)
            print(f"recorded {done} of {total} missing images in {config.workers} workers", flush=True)
            tasks_given.drop(dropped, recorder.faults)


class TableWorker(BaseWorker):
    """Records shards in a process with its own model and scorers."""

    def setup(self, settings: EnvSettings, attempts: int, identity: Mapping[str, Any]) -> None:
        """Loads the model; ``identity`` is that of the recorder of the process that asks."""
        self.limit = settings.max_faults
        self.recorder = recorder_of(settings, attempts)
        self.check_identity(identity, self.recorder.identity)

    def record(self, images: Images, lanes: int, _: str) -> tuple[AttemptTable, list[AdDiffusionError]]:
        """The table of some images, and the errors of those that were left out."""
        faults = _Kept(self.limit)
        table = replace(self.recorder, faults=faults).record(images, lanes)
        return table, faults.errors


class _Kept(FaultCount):
    """Counts dropped lanes and keeps their errors."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.errors: list[AdDiffusionError] = []

    def drop(self, error: AdDiffusionError) -> Any:
        """See :meth:`.FaultCount.drop`."""
        dropped = super().drop(error)
        self.errors.append(error)
        return dropped

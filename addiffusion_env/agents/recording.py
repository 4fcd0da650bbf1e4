"""Records the attempts of a training, in this process or in Ray workers, in shards that an interruption keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from addiffusion_env.agents.factory import ROLLOUTS
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import unknown
from addiffusion_env.prompts import Prompt
from addiffusion_env.tabular.recorder import recorder_of
from addiffusion_env.tabular.table import AttemptTable

LOCAL: Mapping[str, Any] = {"kind": "local"}


def record_prompts(
    prompts: Sequence[Prompt],
    settings: EnvSettings,
    attempts: int,
    folder: Path,
    lanes: int,
    shard: int = 32,
    rollouts: Mapping[str, Any] = LOCAL,
) -> AttemptTable:
    """Records one image of each prompt, or reads what was recorded before.

    Args:
        prompts: of the images.
        settings: of the environment.
        attempts: per image.
        folder: of the table's files.
        lanes: images in progress at once, in all workers together.
        shard: images per file: at most these are lost by an interruption of a worker.
        rollouts: ``kind: local``; or ``kind: ray`` with the fields of :class:`.RayConfig`: workers record whole shards,
            here or on a cluster, and this process writes them.

    Raises:
        ConfigError: for a process that is not a table of attempts, or bad settings.
        RunFolderError: when a file cannot be written.
        WorkerError: when workers are lost more often than ``rollouts.patience``, or hold other models.
    """
    if rollouts["kind"] not in ROLLOUTS:
        raise unknown("rollouts.kind", str(rollouts["kind"]), ROLLOUTS)
    images = [(prompt, 0) for prompt in prompts]
    recorder = recorder_of(settings, attempts)

    def note(done: int) -> None:
        print(f"recorded {done} of {len(prompts)} images, {attempts} attempts each", flush=True)

    if rollouts["kind"] == "ray":
        shards = recorder.shards(images, folder, shard)
        missing = [(chunk, path) for chunk, path in shards if not path.is_file()]
        if missing:
            from addiffusion_env.agents.table_worker import record_in_workers  # loads Ray

            record_in_workers(missing, recorder, settings, attempts, lanes, rollouts)
    return recorder.record_shards(images, folder, lanes, shard, note)

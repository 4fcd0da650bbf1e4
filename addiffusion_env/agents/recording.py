"""What a training on a table records: attempts of its prompts, and the calibrator that is fitted to them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from addiffusion_env.agents.calibrator_file import named_calibrators
from addiffusion_env.agents.factory import is_remote
from addiffusion_env.backbones.fingerprint import digest_of
from addiffusion_env.backbones.identity import described
from addiffusion_env.config import removed_in
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import ConfigError, PromptError
from addiffusion_env.prompts import Prompt, PromptSource, stable_hash
from addiffusion_env.settings import Ge, Settings
from addiffusion_env.tabular.fit_calibrator import check_fit, fit_calibrator
from addiffusion_env.tabular.recorder import recorder_of
from addiffusion_env.tabular.table import AttemptTable

PROMPT_SEED = 101
"""Selects the prompts of the table."""

LOG_ODDS = {"centre": 0.0, "width": 2.0}
"""Terminal bonus on a calibrator's log-odds: halved, so that probabilities of .99 and .999 still differ."""


@dataclass(frozen=True)
class TabularConfig(Settings):
    """Settings of training on a table.

    Attributes:
        images: number of images of the training source that are recorded.
        attempts: per image; at most one more than the refinements that an episode may take is needed.
        lanes: parallel episodes on the table.
        total_timesteps: number of decisions.
        ppo: keyword arguments of the algorithm on the table.
        held_out: further prompts of the training source, recorded after training to measure what the policy
            spends on prompts that it was not trained on; 0 measures it on the recorded ones, which is optimistic.
        imitate: decisions of the best rules on the table (:mod:`.tabular.rules`) that the policy imitates before it
            learns by itself; 0 begins from random weights.
        shard_size: images per file of the table: at most these are lost by an interruption of a worker.
        calibrator: arguments of :meth:`.Calibrator.fit` (``directions``, ``ridge``): fits a calibrator to the recorded
            images, without verdicts, which then ranks attempts and pays for the finished image; ``None`` for none.
    """

    section: ClassVar[str] = "tabular"
    retired: ClassVar[Mapping[str, str]] = removed_in(section)

    images: Annotated[int, Ge(1)] = 256
    attempts: Annotated[int, Ge(1)] = 5
    lanes: Annotated[int, Ge(1)] = 128
    total_timesteps: int = 300_000
    ppo: Mapping[str, Any] = field(default_factory=dict)
    held_out: Annotated[int, Ge(0)] = 64
    imitate: Annotated[int, Ge(0)] = 0
    shard_size: Annotated[int, Ge(1)] = 32
    calibrator: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fit(self.calibrator, self.images)


@dataclass(frozen=True)
class Recording:
    """The attempts of a training, recorded in shards, which a resumed run reads instead.

    Attributes:
        environment: settings of the environment.
        tabular: how much is recorded.
        folder: of the run.
        lanes: images in progress at once, in all workers together.
        rollouts: ``kind: local``; or ``kind: ray`` with the fields of :class:`.RayConfig`: workers record whole shards,
            here or on a cluster, and this process writes them.
    """

    environment: Mapping[str, Any]
    tabular: TabularConfig
    folder: Path
    lanes: int
    rollouts: Mapping[str, Any] = field(default_factory=lambda: {"kind": "local"})

    @cached_property
    def settings(self) -> EnvSettings:
        """The environment."""
        return EnvSettings.of(**self.environment)

    def prompts(self) -> list[Prompt]:
        """The prompts of the table."""
        return self.settings.prompt_source().take(self.tabular.images, seed=PROMPT_SEED)

    def held_out_prompts(self, seen: Container[str] = ()) -> list[Prompt]:
        """``tabular.held_out`` prompts of the training source that are not on the table, or all that it has.

        The same ones for the same ``seen``, so that a resumed run reads what it recorded of them.

        Args:
            seen: ids of prompts used by live episodes, which are excluded too.
        """
        source, wanted = self.settings.prompt_source(), self.tabular.held_out
        trained = {prompt.prompt_id for prompt in self.prompts()}
        drawn, unused, known = self.tabular.images, list[Prompt](), -1
        while len(unused) < wanted:
            drawn += wanted - len(unused)
            found = take_at_most(source, drawn)
            unused = [prompt for prompt in found if prompt.prompt_id not in trained and prompt.prompt_id not in seen]
            different = len({prompt.prompt_id for prompt in found})
            if len(found) < drawn or different == known:  # exhausted, or it repeats its prompts
                break
            known = different
        # A list may give more than were wanted, in the order of its file, perhaps sorted by kind.
        chosen = set(sorted((p.prompt_id for p in unused), key=lambda name: stable_hash("held out", name))[:wanted])
        return [prompt for prompt in unused if prompt.prompt_id in chosen]

    def record(self, prompts: Sequence[Prompt], name: str) -> AttemptTable:
        """Records one image of each prompt in the run's folder ``name``, or reads what was recorded before.

        Raises:
            ConfigError: for a process that is not a table of attempts.
            RunFolderError: when a file cannot be written.
            WorkerError: when workers are lost more often than ``rollouts.patience``, or hold other models.
        """
        folder, size, images = self.folder / name, self.tabular.shard_size, [(prompt, 0) for prompt in prompts]
        recorder = recorder_of(self.settings, self.tabular.attempts)
        if is_remote(self.rollouts):
            missing = [(chunk, path) for chunk, path in recorder.shards(images, folder, size) if not path.is_file()]
            if missing:
                from addiffusion_env.agents.table_worker import record_in_workers  # loads Ray

                record_in_workers(missing, recorder, self.settings, self.lanes, self.rollouts)
        return recorder.record_shards(images, folder, self.lanes, size)

    def table(self) -> AttemptTable:
        """The table of the run; see :meth:`record`."""
        prompts, wanted = self.prompts(), self.tabular.images
        if (found := len(prompts)) < wanted:
            print(f"prompts: {found} in all, fewer than tabular.images={wanted}: each is recorded once", flush=True)
        return self.record(prompts, "table")

    def with_calibrator(self) -> Recording:
        """The same with an environment that uses the calibrator of this run, as ``tabular.calibrator`` says.

        The table is recorded and the calibrator fitted to it first, where that was not done. It is written to
        ``calibrator`` in the run's folder, under a name that changes with the recorded attempts and the settings of the
        fit, and read by the refinement (which attempt is best) and by the reward's terminal bonus.

        Raises:
            ConfigError: when the environment names a calibrator already.
            RunFolderError: when a file cannot be written.
        """
        fit = self.tabular.calibrator
        if fit is None:
            return self
        if known := named_calibrators(self.environment):
            raise ConfigError(
                f"tabular.calibrator fits a calibrator, and the environment uses {known[0]!r} already",
                "set tabular.calibrator=null, or take the calibrator out of env.refine and env.reward",
            )
        recorder = recorder_of(self.settings, self.tabular.attempts)
        made_from = [recorder.fingerprint, [described(prompt) for prompt in self.prompts()], dict(fit)]
        path = self.folder / "calibrator" / f"{digest_of(made_from)[:12]}.safetensors"
        if not path.is_file():
            table = self.table()
            path.parent.mkdir(exist_ok=True)
            fit_calibrator(table, **fit).save(path)
            print(f"fitted a calibrator to {len(table)} prompts, {table.attempts} attempts each: {path}", flush=True)
        refine = _mapping(self.environment.get("refine", "as_published"), "preset")
        reward = _mapping(self.environment.get("reward", "default"), "preset")
        bonus = _mapping(reward.get("terminal_bonus", {}), "weight")
        refine["utility"] = {"calibrator": str(path)}
        reward["terminal_bonus"] = {**LOG_ODDS, **bonus, "calibrator": str(path)}
        return replace(self, environment={**self.environment, "refine": refine, "reward": reward})


def take_at_most(source: PromptSource, count: int) -> list[Prompt]:
    """The first ``count`` prompts of a source, or all that it has."""

    def taken(number: int) -> list[Prompt] | None:
        try:
            return source.take(number, seed=PROMPT_SEED)
        except PromptError:  # an exhausted grammar; lists return what they have
            return None

    found = taken(count)
    if found is None:
        found = taken(bisect_left(range(count), True, key=lambda number: taken(number) is None) - 1)
    return found or []


def _mapping(value: Any, key: str) -> dict[str, Any]:
    """A setting that may be written as a single value, as a mapping."""
    return dict(value) if isinstance(value, Mapping) else {key: value}

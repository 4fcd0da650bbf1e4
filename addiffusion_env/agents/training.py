"""Parts of `train_sb3.py`: its configuration, the algorithm, the run folder, resuming."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecMonitor

from addiffusion_env import __version__
from addiffusion_env.agents.algorithms import (
    algorithm_settings,
    check_algorithm,
    check_batches,
    make_model,
    table_settings,
)
from addiffusion_env.agents.checkpoints import checkpoints, read_latest, restore
from addiffusion_env.agents.factory import is_remote
from addiffusion_env.agents.policy import describe_network
from addiffusion_env.agents.policy_file import FRONTIER_OF, PolicyConfig, describe_policy, load_config, save_policy
from addiffusion_env.agents.recording import PROMPT_SEED, TabularConfig
from addiffusion_env.backbones.fingerprint import digest_of
from addiffusion_env.backbones.identity import difference_words, differences, listed, results_digest
from addiffusion_env.config import REMOVED, check_removed, dotted_keys, renamed
from addiffusion_env.engine.lanes import lanes_of
from addiffusion_env.errors import ConfigError, ResumeError, RunFolderError, WeightsError, WorkerError
from addiffusion_env.files import read_json, write_text
from addiffusion_env.settings import Ge, Settings

HIGHEST_SEED = 2**32 - 1
"""The largest seed of NumPy's global generator, which SB3 seeds."""


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """A training's configuration.

    Attributes:
        plugins: modules to import first; see :mod:`addiffusion_env.plugins`.
        run_dir: folder of checkpoints, log, policy and report.
        resume: ``"auto"`` to continue from the newest checkpoint, or ``"never"``.
        seed: lane i's episodes come from ``seed + i``.
        device: of the policy network.
        algorithm: see :func:`.find_algorithm`.
        lanes: number of parallel episodes, or ``"auto"``.
        max_faults: number of episodes that may be dropped.
        total_timesteps: decisions on the live environment, 0 or more.
        checkpoint_every: decisions between checkpoints.
        progress_bar: whether to show one.
        env: see :class:`.EnvSettings`.
        ppo: keyword arguments of PPO, MaskablePPO and RecurrentPPO.
        algorithm_kwargs: those of any algorithm; see :func:`.algorithm_settings`.
        tabular: see :class:`.TabularConfig`; ``None`` trains on the live environment alone.
        report: keys of ``configs/eval.yaml``; ``None`` for no report.
        rollouts: see :func:`.is_remote`.
        plan: whether to print the cost of the training instead.

    Raises:
        ConfigError: for a value of another type or out of its range.
    """

    see: ClassVar[str] = "see configs/train.yaml"

    plugins: Sequence[str]
    run_dir: str
    resume: str
    seed: Annotated[int, Ge(0)]
    device: str
    algorithm: str
    lanes: int | str
    max_faults: Annotated[int, Ge(0)]
    total_timesteps: Annotated[int, Ge(0)]
    checkpoint_every: Annotated[int, Ge(1)]
    progress_bar: bool
    env: Mapping[str, Any]
    ppo: Mapping[str, Any]
    algorithm_kwargs: Mapping[str, Any] | None
    tabular: Mapping[str, Any] | None
    report: Mapping[str, Any] | None
    rollouts: Mapping[str, Any]
    plan: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed > HIGHEST_SEED:
            raise ConfigError(f"seed must be at most {HIGHEST_SEED}, got {self.seed}", "use a lower one")
        if self.resume not in ("auto", "never"):
            raise ConfigError(f"resume must be auto or never, got {self.resume!r}", self.see)
        is_remote(self.rollouts)
        if self.tabular is None and self.total_timesteps == 0:
            raise ConfigError(
                "total_timesteps is 0 and tabular is null: nothing would be trained", "total_timesteps=4096"
            )

    @classmethod
    def of(cls, given: Mapping[str, Any] | TrainingConfig) -> TrainingConfig:
        """See :meth:`.Settings.of`; removed keys are refused too."""
        if isinstance(given, Mapping):
            check_removed(dotted_keys(given))
        return super().of(given)


def algorithm_and_table(
    config: Mapping[str, Any], overrides: Iterable[str] = ()
) -> tuple[dict[str, Any], TabularConfig | None]:
    """The keyword arguments of the algorithm, and the training on a table with those of its own, all checked.

    Args:
        config: the keys of ``configs/train.yaml``.
        overrides: which of them were given on the command line, and must therefore take effect.

    Raises:
        UnknownNameError: for an unknown algorithm or policy.
        ConfigError: for settings that are unknown or would not take effect.
    """
    name = config["algorithm"]
    chosen = algorithm_settings(name, config["ppo"], config["algorithm_kwargs"], overrides)
    check_algorithm(name, chosen)
    check_batches(name, chosen, lanes_of(config["lanes"])[0])
    if config["tabular"] is None:
        return chosen, None
    tabular = TabularConfig.of(config["tabular"])
    tabular = replace(tabular, ppo=table_settings(name, chosen, tabular.ppo))
    check_algorithm(name, tabular.ppo)
    check_batches(name, tabular.ppo, tabular.lanes)
    return chosen, tabular


IDENTITY_FILE = "identity.json"
"""Identity of the models, scorers and reward of a run; see :meth:`.Episodes.identity`."""

MAY_CHANGE = (
    "plugins",
    "run_dir",
    "resume",
    "rollouts",
    "total_timesteps",
    "checkpoint_every",
    "report",
    "progress_bar",
    "plan",
    "device",
    "max_faults",
)
"""Configuration keys that may change when a run is resumed."""

NO_MORE = ("reward.classes.terminal_bonus.relative: 0.0 -> nothing",)
"""Differences of identities that are only a removed setting which had no effect."""


def run_folder(path: str | Path) -> Path:
    """Creates a run's folder and checks that it can be written.

    Raises:
        RunFolderError: when it cannot.
    """
    folder = Path(path).expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise RunFolderError(
            f"run folder {folder} cannot be written: {error}", "choose another with run_dir=..."
        ) from error
    return folder


def has_begun(folder: Path) -> bool:
    """Whether a run's folder holds a checkpoint or a trained policy, which other settings must not continue."""
    return bool(checkpoints(folder / "checkpoints")) or exported_at(folder / "policy") is not None


def remember_config(folder: Path, config: Mapping[str, Any], resume: bool) -> None:
    """Saves the resolved configuration in the run's folder, and checks a resumed run against it.

    Raises:
        ResumeError: when there are checkpoints or a policy and a relevant key has changed, or the configuration cannot
            be read; nothing is written then.
        RunFolderError: when it cannot be written.
    """
    path = folder / "config.json"
    if (stored := _remembered(path, resume)) is not None:
        old = renamed(stored, note=False)
        before, now = (
            {key: value for key, value in made.items() if key not in MAY_CHANGE and value is not None}
            for made in (old, config)
        )
        if (gone := old.get("vec_env", "lanes")) != "lanes":
            raise ResumeError(
                f"run {folder} was made with vec_env={gone}, which no longer exists: its checkpoints cannot be read",
                "choose another run_dir, delete the folder to start again, or resume it with the version that made it",
            )
        passed = {*REMOVED} - {"tabular.prompt_seed"}
        same = (*(key + end for key in passed for end in ":."), f"tabular.prompt_seed: {PROMPT_SEED} ->")
        if changed := [line for line in differences(before, now) if not line.startswith(same)]:
            raise ResumeError(
                f"run {folder} was made with another configuration ({listed(changed)})",
                "put those keys back, choose another run_dir, or delete the folder to start again",
            )
    write_text(path, json.dumps(dict(config), indent=2))


def hold_to_identity(folder: Path, env: VecMonitor, resume: bool) -> dict[str, Any]:
    """Saves the identity of models, scorers and reward in the run's folder, and checks a resumed run against it.

    The configuration names files; the identity covers their content. For other package versions and another kind of
    device only a warning is issued.

    Returns:
        The identity, as returned by :meth:`.Episodes.identity`.

    Raises:
        ResumeError: when there are checkpoints or a policy of another identity; nothing is written then.
        WorkerError: when the environments hold different models.
        RunFolderError: when it cannot be written.
    """
    found, *others = env.env_method("identity")
    for other in others:
        if digest_of(other) != digest_of(found):
            raise WorkerError(
                f"environments of one run hold different models: {difference_words(found, other)}",
                "give all machines the same weights, packages and kind of device",
            )
    path = folder / IDENTITY_FILE
    if (stored := _remembered(path, resume)) is not None:
        lines = [line for line in differences(stored, found) if line not in NO_MORE]
        mild = [line for line in lines if line.startswith("packages.") or line.partition(": ")[0].endswith(".device")]
        if len(mild) < len(lines):
            raise ResumeError(
                f"run {folder} was made by another model, scorer, reward or list of prompts: {listed(lines)}",
                "put it back, choose another run_dir, or delete the folder to start again",
            )
        if mild:
            warnings.warn(f"the run continues with different rounding than it began with: {listed(mild)}", stacklevel=2)
    write_text(path, json.dumps(found, indent=1))
    return found


def _remembered(path: Path, resume: bool) -> dict[str, Any] | None:
    """What a run that is resumed has stored in a file; ``None`` where there is nothing to go on from."""
    if not (resume and path.is_file() and has_begun(path.parent)):
        return None
    try:
        return read_json(path)
    except WeightsError as error:
        raise ResumeError(error.cause, "choose another run_dir, or delete the folder to start again") from error


def resume_or_make(
    algorithm: str, env: VecMonitor, settings: Mapping[str, Any], seed: int, device: str, folder: Path, resume: bool
) -> tuple[BaseAlgorithm, dict[str, Any] | None]:
    """The agent of the newest checkpoint, or a new one; and the checkpoint's state, or ``None``.

    Global random generators are restored too, so that the run continues as if uninterrupted. TensorBoard files go to
    ``tensorboard`` in the run's folder.

    Raises:
        UnknownNameError: for an unknown algorithm.
        ResumeError: when no checkpoint of the run can be read, or it does not fit.
    """
    model = make_model(algorithm, env, settings, seed, device)
    state = read_latest(folder / "checkpoints") if resume else None
    if state is not None:
        restore(model, env, state)
    model.set_logger(configure(str(folder / "tensorboard"), ["tensorboard"]))
    if state is not None:
        for name, value in state["model"].get("logged", {}).items():  # not in files of earlier versions
            model.logger.record(name, value)
    return model, state


def last_return(model: BaseAlgorithm) -> float:
    """Mean return of the last 100 training episodes (of all, if fewer have ended); NaN before the first one ends."""
    episodes = [] if model.ep_info_buffer is None else [episode["r"] for episode in model.ep_info_buffer]
    return float(np.mean(episodes)) if episodes else float("nan")


def exported_at(folder: Path) -> int | None:
    """Number of decisions after which the policy in a folder was saved; ``None`` without a readable policy."""
    try:
        return int(load_config(folder).provenance["decisions"])
    except (WeightsError, KeyError, TypeError, ValueError):
        return None


def export_policy(
    folder: Path,
    model: BaseAlgorithm,
    config: Mapping[str, Any],
    frontier: Sequence[tuple[float, float]] = (),
    frontier_prompts: str = PolicyConfig.frontier_prompts,
    identity: Mapping[str, Any] | None = None,
) -> Path:
    """Saves the trained policy in the plain format, with its training settings and frontier.

    Args:
        folder: created if missing.
        model: the agent.
        config: of the training.
        frontier: (cost per NFE, mean NFE) pairs.
        frontier_prompts: description of the prompts that the frontier was measured on.
        identity: of the environment (:meth:`.Episodes.identity`) on which the frontier was measured.
    """
    provenance = {
        "algorithm": config["algorithm"],
        "decisions": model.num_timesteps,
        "seed": config["seed"],
        "version": __version__,
        "run_dir": str(config["run_dir"]),
    }
    described = describe_policy(
        config["env"],
        model.observation_space,
        describe_network(type(model.policy), model.policy_kwargs),
        getattr(model.policy, "net_arch", None),
        plugins=tuple(config["plugins"]),
        frontier=tuple(frontier),
        frontier_prompts=frontier_prompts,
        provenance=provenance,
        identity={name: results_digest((identity or {})[name]) for name in FRONTIER_OF if name in (identity or {})},
    )
    save_policy(folder, model.policy, described)
    return folder

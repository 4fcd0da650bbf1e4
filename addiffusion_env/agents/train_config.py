"""What a training is asked to do: the keys of ``configs/train.yaml``, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from addiffusion_env.config import check_removed
from addiffusion_env.errors import ConfigError
from addiffusion_env.typed import check_least, check_types

SEE = "see configs/train.yaml"
HIGHEST_SEED = 2**32 - 1
"""NumPy's global generator, which SB3 seeds, takes no higher one."""


@dataclass(frozen=True)
class TrainingConfig:
    """A training's configuration.

    Attributes:
        plugins: modules that are imported first; see :mod:`addiffusion_env.plugins`.
        run_dir: folder of checkpoints, log, policy and report.
        resume: ``"auto"`` or ``"never"``.
        seed: lane i's episodes come from ``seed + i``.
        device: of the policy network.
        algorithm: key of :data:`.ALGORITHMS`.
        vec_env: see :func:`.make_vec_env`.
        lanes: episodes at once, or ``"auto"``.
        max_faults: episodes that may be dropped.
        total_timesteps: decisions on the live environment, 0 or more.
        checkpoint_every: decisions between checkpoints.
        progress_bar: whether there is one.
        env: see :class:`.EnvSettings`.
        ppo: keyword arguments of the algorithm.
        replay: see :class:`.ReplayConfig`; ``None`` trains on the live environment alone.
        report: keys of ``configs/eval.yaml``; ``None`` for no report.
        rollouts: ``kind: local``, or ``kind: ray`` and its settings.

    Raises:
        ConfigError: for a value of another type or out of its range.
    """

    plugins: Sequence[str]
    run_dir: str
    resume: str
    seed: int
    device: str
    algorithm: str
    vec_env: str
    lanes: int | str
    max_faults: int
    total_timesteps: int
    checkpoint_every: int
    progress_bar: bool
    env: Mapping[str, Any]
    ppo: Mapping[str, Any]
    replay: Mapping[str, Any] | None
    report: Mapping[str, Any] | None
    rollouts: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_types("", self, SEE)
        check_least("", self, {"seed": 0, "max_faults": 0, "total_timesteps": 0, "checkpoint_every": 1}, SEE)
        if self.seed > HIGHEST_SEED:
            raise ConfigError(f"seed must be at most {HIGHEST_SEED}, got {self.seed}", "use a lower one")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> TrainingConfig:
        """Reads a whole configuration; what else is in it is left alone.

        Raises:
            ConfigError: see the class.
        """
        check_removed(config)
        return cls(**{item.name: config[item.name] for item in fields(cls)})

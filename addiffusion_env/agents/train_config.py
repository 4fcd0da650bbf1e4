"""Configuration of a training: the keys of ``configs/train.yaml``, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from addiffusion_env.agents.algorithms import algorithm_settings, check_algorithm, check_group, table_settings
from addiffusion_env.agents.tabular_training import TabularConfig
from addiffusion_env.config import check_removed
from addiffusion_env.errors import ConfigError
from addiffusion_env.settings import Ge, Settings

HIGHEST_SEED = 2**32 - 1
"""The largest seed of NumPy's global generator, which SB3 seeds."""


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """A training's configuration.

    Attributes:
        plugins: modules to import first; see :mod:`addiffusion_env.plugins`.
        run_dir: folder of checkpoints, log, policy and report.
        resume: ``"auto"`` or ``"never"``.
        seed: lane i's episodes come from ``seed + i``.
        device: of the policy network.
        algorithm: see :func:`.find_algorithm`.
        vec_env: see :func:`.make_vec_env`.
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
        rollouts: ``kind: local``, or ``kind: ray`` and its settings.
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
    vec_env: str
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
        if self.tabular is None and self.total_timesteps == 0:
            raise ConfigError(
                "total_timesteps is 0 and tabular is null: nothing would be trained", "total_timesteps=4096"
            )

    @classmethod
    def of(cls, given: Mapping[str, Any] | TrainingConfig) -> TrainingConfig:
        """See :meth:`.Settings.of`; removed keys are refused too."""
        if isinstance(given, Mapping):
            check_removed(given)
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
    chosen = algorithm_settings(name, config["ppo"], config["algorithm_kwargs"])
    check_algorithm(name, chosen)
    check_group(name, overrides)
    if config["tabular"] is None:
        return chosen, None
    tabular = TabularConfig.of(config["tabular"])
    tabular = replace(tabular, ppo=table_settings(name, chosen, tabular.ppo))
    check_algorithm(name, tabular.ppo)
    return chosen, tabular

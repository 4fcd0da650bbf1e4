"""Configuration of an evaluation: the keys of ``configs/eval.yaml``, checked before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

from addiffusion_env.engine.lanes import lanes_of
from addiffusion_env.errors import ConfigError, check_settings
from addiffusion_env.evaluation.extras import EXTRAS, Extra
from addiffusion_env.evaluation.statistics import positive_margin
from addiffusion_env.settings import Ge, Settings

HIGHEST_SEED = 2**63 - 1
"""The largest seed: records store seeds as 64-bit integers."""
_AT_NFE = re.compile(r"[0-9]+(\.[0-9]+)?nfe")


@dataclass(frozen=True)
class EvaluationConfig(Settings):
    """An evaluation's configuration.

    Attributes:
        plugins: modules to import first; see :mod:`addiffusion_env.plugins`.
        policy: a run's folder or a shipped policy's name; ``None`` compares samplers without learning.
        trust: whether a policy's Stable-Baselines3 zip may be unpickled, which can run any code.
        costs_per_nfe: of one NFE, 0 or more; ``None`` is the policy's own, ``"5.6nfe"`` the one at which its frontier
            on training prompts spends 5.6 NFE.
        samplers: their specifications.
        prompts: number of prompts; ``None`` for all of a list.
        prompt_source: registry name; ``None`` is the backbone's default.
        prompt_options: its keyword arguments; ``None`` are those of the backbone's test prompts.
        prompt_seed: selects the prompts.
        benchmark: name of a benchmark to use instead of the prompt source.
        benchmark_path: its file or folder.
        benchmark_options: options of its reader.
        seeds: one image per prompt and seed; each 0 or more.
        env: environment settings that override the policy's.
        device: as :attr:`.EnvSettings.device`.
        dtype: as :attr:`.EnvSettings.dtype`.
        judges: registry names of held-out scorers; ``None`` are the backbone's defaults.
        margin: margin of non-inferiority, a share of images.
        cost_per_nfe: cost of one NFE in standard deviations of preference, for regret.
        out: folder of records and report.
        max_lanes: images in progress at once, or ``"auto"``.
        max_faults: number of images that may be left out.
        shard_size: images per file of records.
        rollouts: ``kind: local`` or ``kind: ray`` and its settings.
        samples: prompts whose images of all samplers are kept and shown side by side.
        keep_images: as PNG.
        filmstrips: whether to make filmstrips.
        progress_bar: whether to show one.
        plan: whether to print the cost of the evaluation instead.

    Raises:
        ConfigError: for a value of another type or out of its range.
    """

    see: ClassVar[str] = "see configs/eval.yaml; a list is written [a,b]"

    plugins: Sequence[str]
    policy: str | Path | None
    trust: bool
    costs_per_nfe: Sequence[float | str | None]
    samplers: Sequence[str]
    prompts: Annotated[int | None, Ge(1)]
    prompt_source: str | None
    prompt_options: Mapping[str, Any] | None
    prompt_seed: Annotated[int, Ge(0)]
    benchmark: str | None
    benchmark_path: str | None
    benchmark_options: Mapping[str, Any] | None
    seeds: Sequence[int]
    env: Mapping[str, Any] | None
    device: str
    dtype: str
    judges: Sequence[str] | None
    margin: float
    cost_per_nfe: float
    out: str | Path | None
    max_lanes: int | str
    max_faults: Annotated[int, Ge(0)]
    shard_size: Annotated[int, Ge(1)]
    rollouts: Mapping[str, Any]
    samples: Annotated[int, Ge(0)]
    keep_images: bool
    filmstrips: bool
    progress_bar: bool
    plan: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        lanes_of(self.max_lanes, "max_lanes")
        if not self.samplers and self.policy is None:
            raise ConfigError("samplers is empty and there is no policy: nothing to evaluate", "samplers=[fixed:8]")
        positive_margin(self.margin)
        for name, wanted in (("seeds", "[0] is one image per prompt"), ("costs_per_nfe", "[null] is the policy's own")):
            values = getattr(self, name)
            numbers = [value for value in values if value is not None and not _AT_NFE.fullmatch(str(value))]
            if not values or any(isinstance(value, str) or value < 0 for value in numbers):
                raise ConfigError(f"{name} must be one or more numbers, each at least 0, got {values}", wanted)
        if max(self.seeds) > HIGHEST_SEED:
            raise ConfigError(f"seeds must be at most {HIGHEST_SEED}, got {max(self.seeds)}", "use lower ones")


def extras_in(config: Mapping[str, Any]) -> dict[str, type[Extra]]:
    """The extras that a configuration uses: those whose key is neither ``None`` nor ``False``.

    Raises:
        ConfigError: for a value of another type.
        UnknownNameError: for a key that is set and belongs neither to an evaluation nor to a registered extra.
    """
    own = {item.name for item in fields(EvaluationConfig)}
    used = [key for key, value in config.items() if key not in own and value is not None and value is not False]
    for key in used:
        if key not in EXTRAS:
            raise EXTRAS.unknown(key, own)
    found = {key: EXTRAS.load(key) for key in EXTRAS if key in used}
    for key, kind in found.items():
        if not isinstance(config[key], kind.takes):
            wanted = f"{kind.takes.__name__.lower()} or null"
            raise ConfigError(f"{key} must be {wanted}, got {config[key]!r:.100}", EvaluationConfig.see)
    return found


def changed(defaults: Mapping[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The defaults with changes applied and checked.

    Args:
        defaults: values of all keys.
        changes: values of some keys, for instance ``report`` of a training.

    Raises:
        ConfigError: for a key that an evaluation does not have, with the nearest one, or a wrong value.
    """
    if not isinstance(changes, Mapping | None):
        raise ConfigError(f"settings of an evaluation must be a mapping, got {changes!r:.100}", "{prompts: 64}")
    check_settings("an evaluation has", changes or {}, defaults)
    config = {**defaults, **(changes or {})}
    EvaluationConfig.of(config)
    return config

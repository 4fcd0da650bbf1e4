"""Registry of samplers: ``make_sampler("fixed:20")``. A new sampler is one file and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from addiffusion_env.errors import AdDiffusionError, ConfigError
from addiffusion_env.registry import Registry
from addiffusion_env.settings import present

if TYPE_CHECKING:
    from addiffusion_env.samplers.base import Sampler
    from addiffusion_env.samplers.traits import Traits

SAMPLERS = Registry(
    "sampler",
    {
        "continue": "addiffusion_env.samplers.fixed:AlwaysContinue",
        "fixed": "addiffusion_env.samplers.fixed:FixedSteps",
        "stop": "addiffusion_env.samplers.fixed:ConstantStop",
        "random": "addiffusion_env.samplers.random_stop:RandomStop",
        "prompt_rule": "addiffusion_env.samplers.prompt_rule:PromptRule",
        "best_of": "addiffusion_env.samplers.best_of:BestOf",
        "threshold_resample": "addiffusion_env.samplers.best_of:ThresholdResample",
        "checked_attempts": "addiffusion_env.samplers.checked_attempts:CheckedAttempts",
        "interval": "addiffusion_env.samplers.interval:Interval",
        "oracle_stop": "addiffusion_env.samplers.oracle_stop:OracleStop",
        "policy": "addiffusion_env.agents.learned:PolicySampler",
    },
    more="addiffusion_lab",
)
"""Name -> a class whose ``parse`` reads the part of a specification after the colon."""


def make_sampler(spec: str) -> Sampler:
    """Makes a sampler from its specification.

    Args:
        spec: ``"fixed:20"``, ``"stop:6"``, ``"random:0.1"``, ``"prompt_rule:8,6"``, ``"best_of:3x6"``,
            ``"threshold_resample:0.8"``, ``"checked_attempts:0.5,0.6,3"``, ``"interval:fixed:6"``,
            ``"oracle_stop:preference"``, ``"policy:FOLDER"`` or ``"policy:FOLDER@COST"``,
            either followed by ``",shuffled"`` or ``",no_refine"``.

    Raises:
        UnknownNameError: for an unknown sampler; the nearest known one is given.
        ConfigError: for numbers of the wrong form or range.
        WeightsError: for a folder that holds no policy.
    """
    name, colon, arguments = str(spec).partition(":")
    kind = SAMPLERS.load(present("sampler", name.strip()))
    if not colon and ":" in kind.usage:
        raise ConfigError(f"sampler {spec!r} lacks its numbers", f"write {kind.usage}")
    return kind.parse(arguments)


def named_traits(name: str) -> Traits:
    """The traits of a sampler known by name only, as in manifests of earlier versions."""
    from addiffusion_env.samplers.traits import Traits

    bare = present("sampler", name.partition(":")[0], note=False)
    try:
        kind = SAMPLERS.load(bare)
        return kind.traits_of(name) if hasattr(kind, "traits_of") else Traits.of(make_sampler(name))
    except AdDiffusionError:
        return Traits(kind=bare)

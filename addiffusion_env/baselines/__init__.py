"""Methods without learning, by name: ``make_method("fixed:20")``. A new one is one file and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from addiffusion_env.errors import AdDiffusionError, ConfigError
from addiffusion_env.registry import Registry

if TYPE_CHECKING:
    from addiffusion_env.baselines.base import Method
    from addiffusion_env.baselines.traits import Traits

BASELINES = Registry(
    "method",
    {
        "continue": "addiffusion_env.baselines.always_continue:AlwaysContinue",
        "fixed": "addiffusion_env.baselines.fixed:FixedSteps",
        "stop": "addiffusion_env.baselines.constant_stop:ConstantStop",
        "random": "addiffusion_env.baselines.random_stop:RandomStop",
        "prompt_rule": "addiffusion_env.baselines.prompt_rule:PromptRule",
        "best_of": "addiffusion_env.baselines.best_of:BestOf",
        "threshold_retry": "addiffusion_env.baselines.threshold_retry:ThresholdRetry",
        "interval": "addiffusion_env.baselines.interval:Interval",
        "oracle_stop": "addiffusion_env.baselines.oracle_stop:OracleStop",
        "policy": "addiffusion_env.agents.learned:LearnedMethod",
    },
    more="addiffusion_lab",
)
"""Name -> a class whose ``parse`` reads what stands after the colon of a specification."""


def make_method(spec: str) -> Method:
    """Makes a method from its specification.

    Args:
        spec: ``"fixed:20"``, ``"stop:6"``, ``"random:0.1"``, ``"prompt_rule:8,6"``, ``"best_of:3x6"``,
            ``"threshold_retry:0.8"``, ``"interval:fixed:6"``, ``"oracle_stop:preference"``,
            ``"policy:FOLDER"`` or ``"policy:FOLDER@PRICE"``,
            and after either ``",shuffled"`` or ``",no_refine"``.

    Raises:
        UnknownNameError: for an unknown method; the nearest known one is given.
        ConfigError: for numbers of the wrong form or range.
        WeightsError: for a folder that holds no policy.
    """
    name, colon, arguments = str(spec).partition(":")
    kind = BASELINES.load(name.strip())
    if not colon and ":" in kind.usage:
        raise ConfigError(f"method {spec!r} lacks its numbers", f"write {kind.usage}")
    return kind.parse(arguments)


def named_traits(name: str) -> Traits:
    """The traits of a method of which only the name was kept, as in manifests of earlier versions."""
    from addiffusion_env.baselines.traits import Traits

    bare = name.partition(":")[0]
    try:
        kind = BASELINES.load(bare)
        return kind.traits_of(name) if hasattr(kind, "traits_of") else Traits.of(make_method(name))
    except AdDiffusionError:
        return Traits(kind=bare)

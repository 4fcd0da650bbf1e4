"""The algorithms of a training: any class of Stable-Baselines3 or sb3-contrib that takes discrete actions, or your own.

``algorithm=dqn``, ``DQN``, ``recurrent_ppo``, ``RecurrentPPO`` or ``my_module.MyAlgorithm``. The policy is this
project's where the class admits it, otherwise its ``MultiInput`` policy with :class:`.KeyProjection` in front.
"""

from __future__ import annotations

import inspect
import math
import numbers
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.vec_env import VecMonitor

from addiffusion_env.agents.policy import (
    AdDiffusionPolicy,
    KeyProjection,
    MaskableAdDiffusionPolicy,
    load_class,
    with_classes,
)
from addiffusion_env.backbones.devices import resolve_device
from addiffusion_env.errors import ConfigError, check_settings, nearest, unknown
from addiffusion_env.settings import check_arguments

OWN_POLICIES: dict[type, type[BasePolicy]] = {
    MultiInputActorCriticPolicy: AdDiffusionPolicy,
    MaskableMultiInputActorCriticPolicy: MaskableAdDiffusionPolicy,
}
"""SB3's policy for a Dict observation -> this project's."""

PPO_FAMILY = (PPO, MaskablePPO, RecurrentPPO)
"""The algorithms that take the settings under ``ppo``."""

TABLE_FAMILY = (PPO, MaskablePPO)
"""Those of them that learn on a table: without a memory."""

RANGES = {
    **dict.fromkeys(("n_steps", "batch_size", "n_epochs", "buffer_size", "train_freq"), (1.0, math.inf)),
    **dict.fromkeys(("clip_range", "learning_rate"), (0.0, math.inf)),
    **dict.fromkeys(("gamma", "gae_lambda", "tau"), (0.0, 1.0)),
    **dict.fromkeys(("exploration_fraction", "exploration_initial_eps", "exploration_final_eps"), (0.0, 1.0)),
}
"""Ranges of arguments that SB3 does not check, or only in the middle of a training."""

SET_BY_TRAINING = ("self", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model")
"""Arguments of an algorithm that :func:`make_model` and the configuration set."""

SET_BY_SB3 = ("self", "observation_space", "action_space", "lr_schedule", "use_sde")
"""Arguments of a policy that its algorithm sets."""


@cache
def shipped_algorithms() -> dict[str, type[BaseAlgorithm]]:
    """Every algorithm of Stable-Baselines3 and sb3-contrib by name: ``dqn``, ``recurrent_ppo`` ..."""
    classes = [getattr(package, name) for package in (stable_baselines3, sb3_contrib) for name in package.__all__]
    return {
        re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower(): kind
        for kind in classes
        if isinstance(kind, type) and issubclass(kind, BaseAlgorithm)
    }


def find_algorithm(name: str) -> type[BaseAlgorithm]:
    """The class of an algorithm that learns discrete actions from a Dict observation.

    Args:
        name: of a class of Stable-Baselines3 or sb3-contrib, as it is written there or in lower case, with or without
            underscores; or ``module.Class``.

    Raises:
        UnknownNameError: for an unknown name, with the nearest one.
        ConfigError: for an algorithm of continuous actions, or without a policy for a Dict observation.
    """
    if "." in name:
        kind = load_class("algorithm", name, BaseAlgorithm)
    else:
        shipped = {key.replace("_", ""): kind for key, kind in shipped_algorithms().items()}
        found = shipped.get(name.replace("_", "").lower())
        if found is None:
            error = unknown("algorithm", name, _suitable())
            raise type(error)(error.cause, f"{error.remedy}; or your own class as module.Class, with plugins=[module]")
        kind = found
    reason = _unsuitable(kind)
    if reason:
        raise ConfigError(f"algorithm {name} does not suit: {reason}", f"use one of {', '.join(_suitable())}")
    return kind


@cache
def _suitable() -> tuple[str, ...]:
    return tuple(sorted(name for name, kind in shipped_algorithms().items() if not _unsuitable(kind)))


class _Probe(gym.Env):
    """Spaces like those of the environments, to ask a class what it takes before any model is loaded."""

    observation_space = spaces.Dict({"quality": spaces.Box(-1.0, 1.0, (1,), np.float32)})
    action_space = spaces.Discrete(3)


@cache
def _unsuitable(kind: type[BaseAlgorithm]) -> str:
    """Why an algorithm cannot learn here; empty if it can."""
    if default_policy(kind) is None:
        return "it has no policy for a Dict observation (MultiInputPolicy)"
    try:
        kind(default_policy(kind), _Probe(), device="cpu", _init_setup_model=False)  # type: ignore[arg-type,call-arg]
    except AssertionError as error:  # by which SB3 refuses an action space
        said = re.sub(r"<class '[\w.]*?(\w+)'>", r"\1", " ".join(str(error).split()))
        return f"the actions here are {_Probe.action_space}, and it says: {said}"
    except (TypeError, ValueError):
        return ""  # a class of its own signature: what it takes is seen when it is made
    return ""


def default_policy(kind: type[BaseAlgorithm]) -> type[BasePolicy] | None:
    """The policy class of an algorithm for the observations here; ``None`` if it has none for a Dict."""
    known = getattr(kind, "policy_aliases", {})
    found = known.get("MultiInputPolicy") or known.get("MultiInputLstmPolicy")
    return None if found is None else OWN_POLICIES.get(found, found)


def algorithm_settings(
    name: str, ppo: Mapping[str, Any], others: Mapping[str, Any] | None, overrides: Iterable[str] = ()
) -> dict[str, Any]:
    """The keyword arguments of an algorithm, from the configuration's ``ppo`` and ``algorithm_kwargs``.

    ``ppo`` holds those of PPO, MaskablePPO and RecurrentPPO; ``algorithm_kwargs`` those of any algorithm, which win.

    Args:
        name: of the algorithm.
        ppo: the one group.
        others: the other group.
        overrides: of the command line: ``["ppo.n_steps=8"]``.

    Raises:
        ConfigError: for an override of ``ppo`` that would not take effect, as the algorithm does not take these.

    >>> algorithm_settings("dqn", {"n_steps": 32}, {"gamma": 1.0})
    {'gamma': 1.0}
    """
    if issubclass(find_algorithm(name), PPO_FAMILY):
        return {**ppo, **(others or {})}
    for item in overrides:
        key, _, value = item.lstrip("+~").partition("=")
        if key.split(".")[0] == "ppo":
            setting = key.partition(".")[2] or "NAME"
            raise ConfigError(
                f"{key} would not take effect: ppo holds the settings of PPO, MaskablePPO and RecurrentPPO, and "
                f"algorithm={name}",
                f"write 'algorithm_kwargs={{{setting}: {value}}}'",
            )
    return dict(others or {})


def table_settings(name: str, chosen: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of the algorithm on a table: those of ``tabular.ppo``, with the network of the live agent.

    Args:
        name: of the algorithm.
        chosen: keyword arguments of the live agent, which takes the weights over.
        table: those of ``tabular.ppo``.

    Raises:
        ConfigError: for an algorithm that does not learn on a table, or another network than the live agent's.
    """
    if not issubclass(find_algorithm(name), TABLE_FAMILY):
        raise ConfigError(
            f"tabular: on a table of attempts only PPO and MaskablePPO learn, and algorithm={name}",
            "tabular=null total_timesteps=20000 learns on the live environment alone; or algorithm=maskable_ppo",
        )
    network = {key: chosen[key] for key in ("policy", "policy_kwargs") if key in chosen}
    for key in ("policy", "policy_kwargs"):
        if key in table and table[key] != network.get(key):
            raise ConfigError(
                f"tabular.ppo.{key} is {table[key]!r:.100}, and the agent that takes its weights over has "
                f"{network.get(key)!r:.100}",
                f"give it once: 'algorithm_kwargs={{{key}: ...}}'",
            )
    return {**table, **network}


def check_algorithm(name: str, settings: Mapping[str, Any]) -> None:
    """Checks an algorithm's settings against the signatures of its class and its policy before anything is loaded.

    Args:
        name: see :func:`find_algorithm`.
        settings: its keyword arguments, as the configuration has them; classes may be named ``module.Class``.

    Raises:
        UnknownNameError: for an unknown algorithm or policy.
        ConfigError: for an unknown setting, with the nearest one, or a value of another type or out of its range.
    """
    kind, settings = find_algorithm(name), _with_classes(settings)
    known = [item for item in arguments_of(kind) if item not in SET_BY_TRAINING]
    check_settings(f"{name} has", settings, known)
    for one, parameters in _signatures(kind):
        check_arguments(name, one.__init__, {key: settings[key] for key in settings if key in parameters})  # type: ignore[misc]
    for key, (low, high) in RANGES.items():
        value = settings.get(key)
        if isinstance(value, numbers.Real) and not low <= float(value) <= high:
            allowed = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise ConfigError(f"{key} of {name} must be {allowed}, got {value}", f"see {kind.__module__}")
    policy = _policy(name, kind, settings.get("policy"))
    inside = [item for item in arguments_of(policy) if item not in SET_BY_SB3]
    check_settings(f"{policy.__name__} (policy_kwargs of {name}) has", settings.get("policy_kwargs") or {}, inside)


def check_batches(name: str, settings: Mapping[str, Any], lanes: int) -> None:
    """Checks that no batch has a single decision, whose advantage sb3-contrib would normalize to NaN.

    Args:
        name: of the algorithm.
        settings: see :func:`check_algorithm`.
        lanes: number of its environments.

    Raises:
        ConfigError: if one has.
    """
    base = next((one for one in (MaskablePPO, RecurrentPPO) if issubclass(find_algorithm(name), one)), None)
    if base is None:
        return
    values = {item.name: item.default for item in inspect.signature(base).parameters.values()} | dict(settings)
    steps, batch = values["n_steps"], values["batch_size"]
    if values["normalize_advantage"] and batch and (batch == 1 or steps * lanes % batch == 1):
        raise ConfigError(
            f"batch_size={batch} of {name} leaves a batch of one decision, of n_steps * lanes = {steps} * {lanes}: "
            "its advantage cannot be normalized",
            f"choose a batch_size that divides {steps * lanes}, or normalize_advantage=false",
        )


def arguments_of(kind: type) -> list[str]:
    """Names of the keyword arguments of a class, those that it hands on to its bases by ``**kwargs`` too."""
    return list(dict.fromkeys(name for _, parameters in _signatures(kind) for name in parameters))


def _signatures(kind: type) -> Iterator[tuple[type, list[str]]]:
    """The classes that the keyword arguments of a class reach, and their names there."""
    for one in kind.__mro__:
        if "__init__" in vars(one):
            parameters = inspect.signature(one.__init__).parameters.values()  # type: ignore[misc]
            yield one, [item.name for item in parameters if item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)]
            if all(item.kind != item.VAR_KEYWORD for item in parameters):
                return


def make_model(name: str, env: VecMonitor, settings: Mapping[str, Any], seed: int, device: str) -> BaseAlgorithm:
    """A new agent.

    Args:
        name: see :func:`find_algorithm`.
        env: its environments.
        settings: see :func:`check_algorithm`.
        seed: of its networks and its actions.
        device: of its networks.

    Raises:
        UnknownNameError: for an unknown algorithm.
        ConfigError: for settings that are unknown or refused, or a device that torch does not know.
    """
    check_algorithm(name, settings)
    check_batches(name, settings, env.num_envs)
    kind, where = find_algorithm(name), resolve_device(device)
    given = _with_classes(settings)
    policy = _policy(name, kind, given.pop("policy", None))
    if policy is default_policy(kind) and policy not in OWN_POLICIES.values():
        given["policy_kwargs"] = {"features_extractor_class": KeyProjection, **(given.get("policy_kwargs") or {})}
    try:
        return kind(policy, env, seed=seed, device=where, verbose=0, **given)
    except (AssertionError, ValueError, TypeError, ZeroDivisionError) as error:  # errors by which SB3 refuses a value
        shown = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise ConfigError(f"{name} refuses {shown or 'its defaults'}: {error}", "change the named setting") from error


def log_interval(model: BaseAlgorithm) -> int:
    """How often an algorithm logs: every rollout, or where those are of a few steps, every four episodes of a lane."""
    return 4 * model.n_envs if isinstance(model, OffPolicyAlgorithm) else 1


def _policy(name: str, kind: type[BaseAlgorithm], given: Any) -> type[BasePolicy]:
    if isinstance(given, type):
        return given
    if given is None:
        found = default_policy(kind)
        assert found is not None, "find_algorithm() refuses these"
        return found
    if given in kind.policy_aliases:
        return kind.policy_aliases[given]
    if "." not in str(given):
        raise ConfigError(
            f"{name} has no policy {given!r}", f"{nearest(given, kind.policy_aliases)}; or your own as module.Class"
        )
    return load_class("policy", given, BasePolicy)


def _with_classes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """See :func:`.with_classes`; SB3 tells ``train_freq=(1, "episode")`` from a number by its being a tuple."""
    made = with_classes(settings)
    return {**made, "train_freq": tuple(made["train_freq"])} if isinstance(made.get("train_freq"), list) else made

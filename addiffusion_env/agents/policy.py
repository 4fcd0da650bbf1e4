"""The project's policy, and networks of any policy of Stable-Baselines3: described, built again, asked for decisions.

A policy of any class is described in plain values, by the class's name and its ``policy_kwargs``, and built again
without unpickling. That imports no module but those of :data:`LIBRARIES`: the class of a plugin must be imported
already.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.policies import BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor, nn

from addiffusion_env.errors import ConfigError, closest, unknown

NET_ARCH = {"pi": [64, 64], "vf": [64, 64]}
PROJECTION = {"clip": 32, "timestep": 32, "quality": 32, "cost_per_nfe": 8}
"""Width of each key's projection. CLIP's hundreds of numbers get the same width as the eight of ``quality``."""


class KeyProjection(BaseFeaturesExtractor):
    """Linear -> LayerNorm -> SiLU for each key, concatenated; arrays with more than one dimension are flattened first.

    Args:
        observation_space: a Dict, not nested, of Boxes of any shape (frame stacks, rendered images), or of other
            spaces that SB3 converts to numbers: Discrete, MultiDiscrete, MultiBinary.
        widths: key -> width of its projection; other keys get 32.

    Raises:
        ConfigError: for any other space.
        UnknownNameError: for a width of an unknown key.
    """

    def __init__(self, observation_space: spaces.Dict, widths: dict[str, int] | None = None) -> None:
        if not isinstance(observation_space, spaces.Dict):
            raise ConfigError(
                f"KeyProjection, and so AdDiffusionPolicy, takes a Dict observation, got {observation_space}",
                "use 'MlpPolicy' on flat observations, or remove FlattenObservation",
            )
        for key in widths or {}:
            if key not in observation_space.spaces:
                raise unknown("observation key", key, observation_space.spaces)
        chosen = {**PROJECTION, **(widths or {})}
        sizes = {key: chosen.get(key, 32) for key in observation_space.spaces}
        super().__init__(observation_space, features_dim=sum(sizes.values()))
        self.projections = nn.ModuleDict(
            {
                key: nn.Sequential(
                    nn.Linear(spaces.utils.flatdim(box), sizes[key]), nn.LayerNorm(sizes[key]), nn.SiLU()
                )
                for key, box in observation_space.spaces.items()
            }
        )

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Dict of (B, ...) -> (B, features)."""
        return torch.cat(
            [layer(observations[key].float().flatten(1)) for key, layer in self.projections.items()], dim=1
        )


def policy_defaults() -> dict[str, Any]:
    """SB3's ``policy_kwargs`` of this project's policies."""
    return {"features_extractor_class": KeyProjection, "net_arch": dict(NET_ARCH), "activation_fn": nn.Tanh}


class AdDiffusionPolicy(MultiInputActorCriticPolicy):
    """SB3's MultiInputPolicy with :class:`KeyProjection` and two hidden layers of 64; for PPO and A2C.

    Takes what :class:`KeyProjection` takes: a Dict observation, its Boxes of any shape.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**policy_defaults(), **kwargs})


class MaskableAdDiffusionPolicy(MaskableMultiInputActorCriticPolicy):
    """The same for sb3-contrib's MaskablePPO, which never samples an illegal action."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**policy_defaults(), **kwargs})


LIBRARIES = ("addiffusion_env", "stable_baselines3", "sb3_contrib", "torch")
"""Packages whose modules may be imported to find a class by name."""

OF_TRAINING = ("use_sde", "optimizer_class", "optimizer_kwargs")
"""Keyword arguments of a policy that do not change its network."""

Memory: TypeAlias = tuple[np.ndarray, ...] | None
"""Recurrent state of one lane after a decision: (layers, units) float32 each; ``None`` at first, or without one."""


def load_class(what: str, name: str, base: type) -> Any:
    """The class that is named ``module.Name``.

    Args:
        what: what it is for, in errors: ``"features_extractor_class"``.
        name: its module must be imported already, as plugins are, or belong to :data:`LIBRARIES`.
        base: what it must be derived from: without this a policy's file could name any function to be called.

    Raises:
        ConfigError: for a module that is not imported, a name that it does not have, or an object of another kind.

    >>> load_class("activation_fn", "torch.nn.Tanh", torch.nn.Module).__name__
    'Tanh'
    """
    module, _, attribute = name.rpartition(".")
    if module not in sys.modules and module.partition(".")[0] in LIBRARIES:
        try:
            import_module(module)
        except ImportError as error:
            raise ConfigError(f"{what}: no module {module!r} for {name!r}", "correct the name") from error
    if module not in sys.modules:
        raise ConfigError(
            f"{what}: {name!r} is not in a module that is imported",
            f"pass plugins=[{module}] with it" if module else "write module.Class, with plugins=[module]",
        )
    found = getattr(sys.modules[module], attribute, None)
    if found is None:
        near = closest(attribute, vars(sys.modules[module]))
        raise ConfigError(f"{what}: {module} has no {attribute!r}", f"did you mean '{module}.{near}'?" if near else "")
    if not (isinstance(found, type) and issubclass(found, base)):
        wanted = f"{base.__module__}.{base.__qualname__}"
        raise ConfigError(f"{what}: {name} is not a class derived from {base.__name__}", f"derive it from {wanted}")
    return found


def with_classes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the classes that they name ``module.Class``, under a key that ends in ``_class`` or ``_fn``.

    >>> with_classes({"policy_kwargs": {"activation_fn": "torch.nn.Tanh"}, "gamma": 1.0})
    {'policy_kwargs': {'activation_fn': <class 'torch.nn.modules.activation.Tanh'>}, 'gamma': 1.0}
    """
    made: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            value = with_classes(value)
        elif isinstance(value, str) and _names_a_class(key):
            value = load_class(key, value, _base_of(key))
        made[key] = value
    return made


def describe_network(kind: type[BasePolicy], policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The class of a policy and its ``policy_kwargs`` in plain values, as :func:`build_network` takes them.

    Args:
        kind: the policy's class.
        policy_kwargs: that it was made with.

    Returns:
        ``policy`` and ``policy_kwargs``; empty for this project's own policy without other settings than ``net_arch``,
        whose files have no need of it.

    Raises:
        ConfigError: for a class that cannot be found again under its name, or values that JSON does not hold.
    """
    kept = {key: value for key, value in policy_kwargs.items() if key not in OF_TRAINING}
    if kind in (AdDiffusionPolicy, MaskableAdDiffusionPolicy) and set(kept) <= {"net_arch"}:
        return {}
    return {"policy": _named("policy", kind), "policy_kwargs": _plain("policy_kwargs", kept)}


def layers(arch: Any) -> dict[str, list[int]]:
    """Converts SB3's two formats of hidden layers to one."""
    return {key: list(arch[key] if isinstance(arch, dict) else arch) for key in ("pi", "vf")}


def build_network(network: Mapping[str, Any], net_arch: Mapping[str, Sequence[int]], space: spaces.Dict) -> BasePolicy:
    """A policy with new weights.

    Args:
        network: of :func:`describe_network`.
        net_arch: widths of the hidden layers of this project's own policy, where ``network`` is empty.
        space: its observation space.

    Raises:
        ConfigError: for a class that is not imported.
    """
    how: tuple[Any, ...] = (space, spaces.Discrete(3), lambda _: 0.0)
    if not network:
        return AdDiffusionPolicy(*how, net_arch={key: list(widths) for key, widths in net_arch.items()})
    kind = load_class("policy", str(network["policy"]), BasePolicy)
    made: BasePolicy = kind(*how, **with_classes(network["policy_kwargs"]))
    return made


@torch.no_grad()
def action_probabilities(
    policy: BasePolicy, observation: Mapping[str, np.ndarray], legal: np.ndarray, memories: Sequence[Memory]
) -> tuple[np.ndarray, Sequence[Memory]]:
    """What a policy of any class would do in B lanes.

    Args:
        policy: a network.
        observation: key -> (B, width) float32.
        legal: (B, 3) bool, legal actions.
        memories: of each lane before this decision.

    Returns:
        (B, 3) probabilities, in [0, 1], which illegal actions have a share of where a network gives them one; 1 for the
        legal action of highest value where it gives values (DQN); and the memories after the decision.
    """
    tensors: Any = {key: torch.as_tensor(value, device=policy.device) for key, value in observation.items()}
    if isinstance(policy, RecurrentActorCriticPolicy):
        lstm = policy.lstm_actor
        blank = np.zeros((2, lstm.num_layers, lstm.hidden_size), np.float32)
        before = np.stack([blank if memory is None else np.stack(memory) for memory in memories], axis=2)
        hidden, cell = torch.as_tensor(before, device=policy.device)
        starts = torch.zeros(len(memories), device=policy.device)
        found, after = policy.get_distribution(tensors, (hidden, cell), starts)
        lanes = torch.stack(list(after)).cpu().numpy()
        return _probs(found), [tuple(lanes[:, :, row]) for row in range(len(memories))]
    network: Any = policy  # whose networks are modules: torch declares their attributes as tensors, too
    if hasattr(network, "get_distribution"):
        return _probs(network.get_distribution(tensors)), memories
    if isinstance(policy, DQNPolicy):
        values = network.q_net(tensors)
    elif isinstance(policy, QRDQNPolicy):
        values = network.quantile_net(tensors).mean(dim=1)
    else:  # a class of its own: the action alone is known, in place of an illegal one the first legal one
        values = torch.nn.functional.one_hot(network._predict(tensors, deterministic=True).long().flatten(), 3).float()
    chosen = np.where(legal, values.cpu().numpy(), -np.inf).argmax(1)
    return np.eye(3)[chosen], memories


def _probs(distribution: Any) -> np.ndarray:
    probs: np.ndarray = distribution.distribution.probs.cpu().numpy()
    return probs


def _names_a_class(key: str) -> bool:
    return re.search(r"_(class|fn)$", key) is not None


def _base_of(key: str) -> type:
    bases = {"features_extractor_class": BaseFeaturesExtractor, "optimizer_class": torch.optim.Optimizer}
    return bases.get(key, BaseBuffer if key.endswith("buffer_class") else torch.nn.Module)


def _named(what: str, kind: Any) -> str:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is not kind or kind.__module__ == "__main__":
        raise ConfigError(
            f"{what}: {name} cannot be found again by its name, so that the policy cannot be saved",
            "define it at the top of a module of its own, or keep the model's own save()",
        )
    return name


def _plain(what: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        made = {}
        for key, item in value.items():
            where = f"{what}.{key}"
            if _names_a_class(str(key)) and item is not None and not isinstance(item, str):
                made[str(key)] = _named(where, item)
            else:
                made[str(key)] = _plain(where, item)
        return made
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{what} is {value!r:.100}, which a policy's files cannot hold",
            "use numbers, texts, lists and classes, or keep the model's own save()",
        ) from error

"""The policy: each observation key projected separately, then a two-layer MLP for policy and for value."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from addiffusion_env.errors import ConfigError, unknown

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

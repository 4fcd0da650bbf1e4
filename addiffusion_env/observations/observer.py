"""The observation's space and its arrays, in one object so that they cannot drift apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium import spaces

from addiffusion_env.errors import CapabilityError
from addiffusion_env.observations.features import STANDARD_KEYS, Widths, features_of
from addiffusion_env.observations.frame import Frame


class Observer:
    """Makes Dict observations.

    Args:
        clip_dim: width of the CLIP embedding (768 for ViT-L/14: the three standard keys then hold 1672 numbers).
        keys: which features, in order.
        feature_dim: width of the denoiser's own features; 0 where there are none.

    Attributes:
        keys: see above.
        widths: key -> length.
        space: the observation space.

    Raises:
        UnknownNameError: for an unknown key.
        CapabilityError: for the denoiser's features where there are none.
    """

    def __init__(self, clip_dim: int, keys: Sequence[str] = STANDARD_KEYS, feature_dim: int = 0) -> None:
        self._features = features_of(keys)
        needy = [key for key, feature in self._features.items() if feature.needs_features]
        if needy and not feature_dim:
            raise CapabilityError(
                f"the observation key {needy[0]!r} needs a denoiser with a middle block, and tables that were recorded "
                "with it: there is none here",
                f"leave {needy[0]!r} out of observation_keys, or record the table with features=True",
            )
        self.keys = tuple(keys)
        widths = Widths(clip_dim, feature_dim)
        self.widths = {key: feature.width(widths) for key, feature in self._features.items()}
        self.space = spaces.Dict(
            {
                key: spaces.Box(feature.low, 1.0, (self.widths[key],), np.float32)
                for key, feature in self._features.items()
            }
        )

    def observe(self, frame: Frame) -> dict[str, np.ndarray]:
        """(B, dim) float32 for each key, clipped to the space."""
        return {
            key: np.clip(feature.make(frame), feature.low, 1.0).astype(np.float32)
            for key, feature in self._features.items()
        }

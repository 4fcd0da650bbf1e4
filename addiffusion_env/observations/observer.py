"""The observation's space and its arrays, in one object so that they cannot drift apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium import spaces

from addiffusion_env.errors import CapabilityError, unknown
from addiffusion_env.observations.features import FEATURES, STANDARD_KEYS, Widths
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
        for key in keys:
            if key not in FEATURES:
                raise unknown("observation key", key, FEATURES)
        if "features" in keys and not feature_dim:
            raise CapabilityError(
                "the observation key 'features' needs a denoiser with a middle block, and tables that were recorded "
                "with it: there is none here",
                "leave 'features' out of observation_keys, or record the table with features=True",
            )
        self.keys = tuple(keys)
        self.widths = {key: FEATURES[key].dim(Widths(clip_dim, feature_dim)) for key in self.keys}
        self.space = spaces.Dict(
            {key: spaces.Box(FEATURES[key].low, 1.0, (self.widths[key],), np.float32) for key in self.keys}
        )

    def observe(self, frame: Frame) -> dict[str, np.ndarray]:
        """(B, dim) float32 for each key, clipped to the space."""
        return {key: np.clip(FEATURES[key].make(frame), FEATURES[key].low, 1.0).astype(np.float32) for key in self.keys}

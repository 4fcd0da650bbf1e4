"""The scalar head that ImageReward and the LAION aesthetic predictor share: linear layers, no activations."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import nn

from addiffusion_env.errors import WeightsError
from addiffusion_env.scorers import load_strict

# Positions of the linear layers in the published nn.Sequential; the others are dropout, unused for scoring.
POSITIONS = (0, 2, 4, 6, 7)


def linear_head(state: Mapping[str, torch.Tensor], prefix: str, where: str, inputs: int) -> nn.Sequential:
    """Builds the head from the names ``{prefix}layers.{0,2,4,6,7}.{weight,bias}``; float32, (B, inputs) -> (B, 1).

    Published widths: 768-1024-128-64-16-1. The widths are read from the weights.

    Args:
        state: a state dict that contains the head.
        prefix: ``"mlp."`` in ImageReward, ``""`` in the aesthetic predictor.
        where: the file, for messages.
        inputs: the width of its input features.

    Raises:
        WeightsError: when layers are missing, unexpected, or do not fit each other or the features.
    """
    start = f"{prefix}layers."
    found = {name.removeprefix(start): value.float() for name, value in state.items() if name.startswith(start)}
    biases = [found.get(f"{position}.bias", torch.zeros(1)) for position in POSITIONS]
    widths = [inputs, *(len(bias) for bias in biases)]
    if widths[-1] != 1:
        raise WeightsError(f"{where}: the head ends in {widths[-1]} numbers, expected 1", "point to the right file")
    layers = zip(map(str, POSITIONS), pairwise(widths), strict=True)
    head = nn.ModuleDict({position: nn.Linear(*shape) for position, shape in layers})
    load_strict(head, found, f"{where} ({start}*)")
    return nn.Sequential(*head.values()).eval().requires_grad_(False)

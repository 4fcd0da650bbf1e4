"""The scalar head that ImageReward and the LAION aesthetic predictor share: linear layers, no activations."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from addiffusion_env.errors import WeightsError

# Positions of the linear layers in the published nn.Sequential; the others are dropout, which scoring leaves out.
POSITIONS = (0, 2, 4, 6, 7)


def linear_head(state: Mapping[str, torch.Tensor], prefix: str, where: str, inputs: int) -> nn.Sequential:
    """Builds the head from the names ``{prefix}layers.{0,2,4,6,7}.{weight,bias}``; float32, (B, inputs) -> (B, 1).

    Published widths: 768-1024-128-64-16-1. The widths are read from the weights.

    Args:
        state: a state dict that contains the head.
        prefix: ``"mlp."`` in ImageReward, ``""`` in the aesthetic predictor.
        where: the file, for messages.
        inputs: the width of the features that it will read.

    Raises:
        WeightsError: when layers are missing, do not fit each other or the features.
    """
    pattern = re.compile(re.escape(prefix) + r"layers\.(\d+)\.(weight|bias)")
    found = sorted(name for name in state if pattern.fullmatch(name))
    wanted = [f"{prefix}layers.{position}.{kind}" for position in POSITIONS for kind in ("bias", "weight")]
    if found != wanted:
        raise WeightsError(
            f"{where} holds {found or 'no linear layers'} as its head, expected {wanted}",
            "another predictor has another head; point to the file named in the documentation",
        )
    layers, width = [], inputs
    for position in POSITIONS:
        weight = state[f"{prefix}layers.{position}.weight"].float()
        if weight.ndim != 2 or weight.shape[1] != width:
            raise WeightsError(
                f"{where}: {prefix}layers.{position}.weight is {tuple(weight.shape)}, expected (_, {width})",
                "the head belongs to features of another width",
            )
        layer = nn.Linear(width, weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": state[f"{prefix}layers.{position}.bias"].float()})
        layers.append(layer)
        width = weight.shape[0]
    if width != 1:
        raise WeightsError(f"{where}: the head ends in {width} numbers, expected 1", "point to the right file")
    return nn.Sequential(*layers).eval().requires_grad_(False)

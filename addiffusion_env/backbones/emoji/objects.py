"""Reads the objects of an image as probabilities: where one is, of which class and colour.

Its use is :mod:`addiffusion_env.scorers.emoji`, so it shares neither weights, training images nor outputs with the
detector that judges: an object here is a cell's probability, a class and a colour are distributions given an object,
and no threshold decides.

From these follows the probability that an image shows exactly what a scene asks for. Each candidate is absent, an
object of one group (of its class and, if the prompt names one, its colour), or something that the prompt does not ask
for, independently of the others. The scene holds when every group has its exact number, nothing else is there, and the
relation of its two objects holds: a Poisson-binomial distribution over the groups, summed exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from addiffusion_env.backbones.emoji import WEIGHTS, verify
from addiffusion_env.prompts.emoji_grammar import Scene
from addiffusion_env.prompts.emoji_vocabulary import CLASSES, COLORS, MAX_OBJECTS

STRIDE = 4
"""Pixels per cell of the maps."""

CANDIDATES = 8
"""Candidate objects per image; an image of the emoji world shows four at most."""

GROUPS = 3
"""Groups of a scene at most."""

DISTANCE, SOFTNESS = 7.0, 1.5
"""Pixels between two centres at which a relation is as likely to hold as not, and the scale of the transition."""

SMALLEST = 1e-6
"""Probabilities are kept this far from 0 and 1: a network is never that sure."""


class Maps(NamedTuple):
    """Logits on a 16x16 grid.

    Attributes:
        objects: (B, 1, 16, 16) of "an object's centre is here".
        classes: (B, classes, 16, 16) of the class, given an object.
        colors: (B, 11, 16, 16) of the colour, given an object; 0 for the emoji's own colours.
    """

    objects: Tensor
    classes: Tensor
    colors: Tensor


class Candidates(NamedTuple):
    """The ``K`` most probable objects of each image.

    Attributes:
        present: (B, K) probability that it is an object.
        classes: (B, K, classes) log-probabilities of its class.
        colors: (B, K, 11) log-probabilities of its colour.
        centres: (B, K, 2) x and y in pixels.
    """

    present: Tensor
    classes: Tensor
    colors: Tensor
    centres: Tensor


class _Block(nn.Module):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = _convolution(width, width), _convolution(width, width)
        self.layers = nn.Sequential(*first, nn.ReLU(inplace=True), *second)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


def _convolution(width_in: int, width_out: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(width_out)


class ObjectReader(nn.Module):
    """(B, 3, 64, 64) images in [-1, 1] -> :class:`Maps`; 1.0 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        width = 48  # channels at stride 4; twice as many at stride 8
        self.stem = nn.Sequential(
            *_convolution(3, width // 2, stride=2),
            nn.ReLU(inplace=True),
            *_convolution(width // 2, width, stride=2),
            nn.ReLU(inplace=True),
        )
        self.down = nn.Sequential(*_convolution(width, 2 * width, stride=2), nn.ReLU(inplace=True))
        self.coarse = nn.Sequential(*(_Block(2 * width) for _ in range(4)))
        self.up = nn.Conv2d(2 * width, width, 1)
        self.fine = _Block(width)
        self.sizes = (1, len(CLASSES), 1 + len(COLORS))
        self.head = nn.Conv2d(width, sum(self.sizes), 1)
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias[:1], -3.0)  # few cells are centres
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Maps:
        """Returns the logits."""
        fine = self.stem(images.contiguous(memory_format=torch.channels_last))
        coarse = self.coarse(self.down(fine))
        fine = self.fine(fine + F.interpolate(self.up(coarse), scale_factor=2))
        return Maps(*self.head(fine).split(self.sizes, 1))


def candidates(maps: Maps) -> Candidates:
    """The cells that are more probable than every other one within two cells (8 pixels), the most probable first."""
    probability = maps.objects.sigmoid()
    peak = probability == F.max_pool2d(probability, 5, stride=1, padding=2)
    present, cells = (probability * peak).flatten(1).topk(CANDIDATES, dim=1)
    columns = maps.objects.shape[3]

    def at(logits: Tensor) -> Tensor:
        found = logits.flatten(2).gather(2, cells[:, None].expand(-1, logits.shape[1], -1))
        return found.transpose(1, 2).log_softmax(2)

    centres = torch.stack([cells % columns, cells // columns], dim=2) * STRIDE + STRIDE / 2
    return Candidates(present, at(maps.classes), at(maps.colors), centres)


def load_object_reader(folder: str | Path = WEIGHTS, device: str | torch.device = "cpu") -> ObjectReader:
    """Loads the trained reader, in float32 and evaluation mode, from a folder of emoji weights.

    Raises:
        WeightsError: for a missing or corrupted file.
    """
    from safetensors.torch import load_file

    reader = ObjectReader()
    reader.load_state_dict(load_file(verify(folder, "objects") / "model.safetensors"))
    return reader.to(device).eval().requires_grad_(False)


def scene_logits(found: Candidates, scenes: Sequence[Scene]) -> Tensor:
    """(B,) log-odds that the scene of each image holds, at most 13.8 in absolute value."""
    counts, classes, colors, relations = (value.to(found.present.device) for value in _asked(scenes))
    present = found.present.clamp(SMALLEST, 1 - SMALLEST)
    number = present.shape[1]
    own = found.classes.gather(2, classes[:, None].expand(-1, number, -1))
    tint = found.colors.gather(2, colors[:, None].expand(-1, number, -1))
    fits = present[..., None] * (own + torch.where(colors[:, None] > 0, tint, 0.0)).exp()
    fits = fits * (counts[:, None] > 0)  # (B, K, groups)
    counted = _counted(fits, 1 - present, counts)
    related = _related(fits, 1 - present, found.centres, relations.clamp_min(0))
    probability = torch.where(relations < 0, counted, related).clamp(SMALLEST, 1 - SMALLEST)
    return probability.log() - torch.log1p(-probability)


def _asked(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Counts, classes and colours (B, groups) and relations (B,) of scenes; a group of 0 objects fills up."""
    rows = [[(group.count, group.cls, group.color) for group in scene.groups] for scene in scenes]
    groups = torch.tensor([[*row, *[(0, 0, 0)] * (GROUPS - len(row))] for row in rows])
    relations = torch.tensor([-1 if scene.relation is None else scene.relation for scene in scenes])
    return groups[..., 0], groups[..., 1], groups[..., 2], relations


def _counted(fits: Tensor, absent: Tensor, counts: Tensor) -> Tensor:
    """(B,) probability of exact numbers: one candidate after the other joins a group or is absent."""
    size = MAX_OBJECTS + 1
    state = fits.new_zeros(len(fits), size, size, size)
    state[:, 0, 0, 0] = 1
    for own, none in zip(fits.unbind(1), absent.unbind(1), strict=True):
        after = state * none.view(-1, 1, 1, 1)
        for group in range(GROUPS):
            joined = state.narrow(group + 1, 0, MAX_OBJECTS) * own[:, group].view(-1, 1, 1, 1)
            after.narrow(group + 1, 1, MAX_OBJECTS).add_(joined)
        state = after
    first, second, third = counts.unbind(1)
    return state[torch.arange(len(state), device=state.device), first, second, third]


def _related(fits: Tensor, absent: Tensor, centres: Tensor, relations: Tensor) -> Tensor:
    """(B,) probability of one object of each of two groups in a relation, and no other."""
    towards = centres[:, None] - centres[:, :, None]  # from the first to the second: (B, K, K, 2)
    along = towards.gather(3, (relations // 2).view(-1, 1, 1, 1).expand(-1, *towards.shape[1:3], 1))[..., 0]
    along = along * (1 - 2 * (relations % 2)).view(-1, 1, 1)
    holds = torch.sigmoid((along - DISTANCE) / SOFTNESS)
    odds = fits / absent[..., None]
    pairs = odds[:, :, None, 0] * odds[:, None, :, 1] * holds
    pairs = pairs * (1 - torch.eye(pairs.shape[1], device=pairs.device))
    return pairs.sum((1, 2)) * absent.prod(1)

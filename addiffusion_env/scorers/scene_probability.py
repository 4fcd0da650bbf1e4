"""The probability that an image shows exactly what a scene asks for, from probabilities of its objects.

Each candidate is absent, an object of one group (of its class and, if the prompt names one, its colour), or something
that the prompt does not ask for, independently of the others. The scene holds when every group has its exact number,
nothing else is there, and the relation of its two objects holds: a Poisson-binomial distribution over the groups,
summed exactly. Smooth in every probability.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from addiffusion_env.backbones.emoji.objects import Candidates
from addiffusion_env.prompts.emoji_grammar import Scene
from addiffusion_env.prompts.emoji_vocabulary import MAX_OBJECTS

GROUPS = 3
"""Groups of a scene at most."""

DISTANCE, SOFTNESS = 7.0, 1.5
"""Pixels between two centres at which a relation is as likely to hold as not, and the scale of the transition."""

SMALLEST = 1e-6
"""Probabilities are kept this far from 0 and 1: a network is never that sure."""


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

"""The scorers behind a look at real pictures: CLIP ViT-L/14, ImageReward and DINOv2-S, from the hub or folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from addiffusion_env.errors import ConfigError, nearest
from addiffusion_env.scorers.clip import ClipScorer
from addiffusion_env.scorers.dino import DinoEmbedder
from addiffusion_env.scorers.image_reward import REPO, TOKENIZER_REPO, ImageRewardScorer
from addiffusion_env.scorers.look import LookScorers
from addiffusion_env.scorers.tokens import has_tokenizer

DEFAULTS = {
    "clip": "ViT-L-14",
    "image_reward": REPO,
    "image_reward_tokenizer": TOKENIZER_REPO,
    "dino": "facebook/dinov2-small",
}
"""Part -> what is loaded unless a path is given: a name that open_clip knows, or a hub id."""


def hub_scorers(device: torch.device | str, paths: Mapping[str, str] | None = None) -> LookScorers:
    """Loads the three scorers, in half precision on a GPU.

    Args:
        device: where they run.
        paths: local folders (or other hub ids) in place of :data:`DEFAULTS`, by part: ``clip`` is a folder in
            open_clip's local-dir format, ``image_reward`` holds ``ImageReward.pt`` and ``med_config.json`` and may
            hold the BERT tokenizer too, ``dino`` is a ``Dinov2Model``.

    Raises:
        ConfigError: for an unknown part.
        WeightsError: when one cannot be had, naming its id, where it was looked for and the command that fetches it.
    """
    chosen = {**DEFAULTS, **check_parts(paths or {})}
    dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    reward = Path(chosen["image_reward"]).expanduser()
    if "image_reward_tokenizer" not in (paths or {}) and reward.is_dir() and has_tokenizer(reward):
        chosen["image_reward_tokenizer"] = str(reward)
    return LookScorers(
        ClipScorer.from_pretrained(chosen["clip"], device=device, dtype=dtype),
        ImageRewardScorer.from_pretrained(
            chosen["image_reward"], tokenizer=chosen["image_reward_tokenizer"], device=device, dtype=dtype
        ),
        DinoEmbedder.from_pretrained(chosen["dino"], device=device, dtype=dtype),
    )


def check_parts(paths: Mapping[str, str]) -> Mapping[str, str]:
    """Returns ``paths`` when every key is a part that there is.

    Raises:
        ConfigError: for another, with the nearest one.
    """
    for part in paths:
        if part not in DEFAULTS:
            raise ConfigError(f"there is no scorer {part!r} behind a look", nearest(part, DEFAULTS))
    return paths

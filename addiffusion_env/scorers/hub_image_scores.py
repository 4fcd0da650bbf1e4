"""The scorers of real images: CLIP ViT-L/14, ImageReward and DINOv2-S, from the hub or folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from addiffusion_env.errors import ConfigError, nearest, unknown
from addiffusion_env.scorers import BERT_REPO, IMAGE_REWARD_REPO, Scorer
from addiffusion_env.scorers.clip import ClipScorer, embedding_width
from addiffusion_env.scorers.dino import DinoEmbedder
from addiffusion_env.scorers.image_scores import ImageScorers
from addiffusion_env.scorers.tokens import has_tokenizer

DEFAULTS = {
    "clip": "ViT-L-14",
    "image_reward": IMAGE_REWARD_REPO,
    "image_reward_tokenizer": BERT_REPO,
    "dino": "facebook/dinov2-small",
    "preference": "image_reward",
}
"""Part -> what is loaded by default: a name that open_clip knows, a hub id, a scorer's registry name."""

PREFERENCES = ("image_reward", "image_reward_package")
"""Scorers available as ``preference``: one model, in transformers' classes and through its own package."""


def hub_scorers(device: torch.device | str, paths: Mapping[str, str] | None = None) -> ImageScorers:
    """Loads the three scorers, in half precision on a GPU.

    Args:
        device: where they run.
        paths: local folders (or other hub ids) in place of :data:`DEFAULTS`, by part: ``clip`` is a folder in
            open_clip's local-dir format, ``image_reward`` holds ``ImageReward.pt`` and ``med_config.json`` and may
            hold the BERT tokenizer too, ``dino`` is a ``Dinov2Model``; ``preference`` is one of :data:`PREFERENCES`.

    Raises:
        ConfigError: for an unknown part.
        UnknownNameError: for an unknown preference scorer.
        MissingPackageError: when ``image_reward_package`` is asked for and its package cannot be imported.
        WeightsError: when one cannot be loaded, with its id, the places searched and the command that downloads it.
    """
    given = check_parts(paths or {})
    chosen = {**DEFAULTS, **given}
    dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    preference = preference_scorer(given, device, dtype)
    return ImageScorers(
        ClipScorer.from_pretrained(chosen["clip"], device=device, dtype=dtype),
        preference,
        DinoEmbedder.from_pretrained(chosen["dino"], device=device, dtype=dtype),
    )


def preference_scorer(given: Mapping[str, str], device: torch.device | str, dtype: torch.dtype) -> Scorer:
    """ImageReward by the chosen implementation; the package sets its precision and tokenizer itself.

    Raises:
        MissingPackageError: when the package is requested and cannot be imported.
        WeightsError: when a file cannot be loaded.
    """
    from addiffusion_env.scorers.image_reward import ImageRewardScorer, locate

    name = given.get("image_reward", IMAGE_REWARD_REPO)
    if given.get("preference", DEFAULTS["preference"]) == "image_reward_package":
        from addiffusion_env.scorers.image_reward import ImageRewardPackageScorer, import_package

        import_package()  # before downloading 1.8 GB
        weights, config = locate(name, None)
        return ImageRewardPackageScorer.from_pretrained(str(weights), med_config=str(config), device=str(device))
    reward, tokenizer = Path(name).expanduser(), given.get("image_reward_tokenizer", BERT_REPO)
    if "image_reward_tokenizer" not in given and reward.is_dir() and has_tokenizer(reward):
        tokenizer = str(reward)
    return ImageRewardScorer.from_pretrained(name, tokenizer=tokenizer, device=device, dtype=dtype)


def check_parts(paths: Mapping[str, str]) -> Mapping[str, str]:
    """Returns ``paths`` when every key is a known part.

    Raises:
        ConfigError: for an unknown part, with the nearest one.
        UnknownNameError: for an unknown preference scorer, with the nearest one.
    """
    for part in paths:
        if part not in DEFAULTS:
            raise ConfigError(f"there is no scorer {part!r}", nearest(part, DEFAULTS))
    if paths.get("preference", PREFERENCES[0]) not in PREFERENCES:
        raise unknown("preference scorer", str(paths["preference"]), PREFERENCES)
    return paths


def clip_width(paths: Mapping[str, str]) -> int:
    """Width of the CLIP embedding.

    Raises:
        UnknownNameError: for a CLIP that open_clip does not know.
        WeightsError: for a folder without a CLIP.
    """
    return embedding_width(paths.get("clip", DEFAULTS["clip"]))


class HubScorers:
    """These scorers as a :class:`.ScorerLoader`."""

    check = staticmethod(check_parts)
    clip_width = staticmethod(clip_width)
    load = staticmethod(hub_scorers)

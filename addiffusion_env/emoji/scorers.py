"""The emoji world's scorers of previews and finished images, which come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from addiffusion_env.backbones.emoji.weights import WEIGHTS, verify
from addiffusion_env.errors import ConfigError, WeightsError
from addiffusion_env.scorers.blip_preference import BlipPreferenceScorer
from addiffusion_env.scorers.clip import ClipScorer, embedding_width
from addiffusion_env.scorers.dino import DinoEmbedder
from addiffusion_env.scorers.look import LookScorers


def emoji_scorers(weights_folder: Path, device: torch.device | str = "cpu") -> LookScorers:
    """CLIP, preference scorer and DINO from the folder that also holds their tokenizer.

    Raises:
        WeightsError: when a part is missing.
    """
    folder = Path(weights_folder)
    if not folder.is_dir():
        raise WeightsError(f"no such folder: {folder}", "the emoji weights come with the package: install it again")
    tokenizer = folder / "tokenizer"
    return LookScorers(
        ClipScorer.from_pretrained(folder / "clip", device=device, tokenizer=tokenizer),
        BlipPreferenceScorer.from_pretrained(folder / "image_reward", device=device, tokenizer=tokenizer),
        DinoEmbedder.from_pretrained(folder / "dino", device=device),
    )


class EmojiScorers:
    """The :class:`.ScorerLoader` of the shipped weights, each file checked by its sha256."""

    @staticmethod
    def check(paths: Mapping[str, str]) -> Mapping[str, str]:
        """Nothing can be given in the place of the shipped scorers.

        Raises:
            ConfigError: for anything that is given.
        """
        if paths:
            raise ConfigError(f"the emoji world has its own scorers, got scorers={dict(paths)}", "leave scorers empty")
        return paths

    @staticmethod
    def clip_width(paths: Mapping[str, str]) -> int:
        """Width of the CLIP embedding, from its configuration."""
        return embedding_width(WEIGHTS / "clip")

    @classmethod
    def load(cls, device: torch.device | str, paths: Mapping[str, str]) -> LookScorers:
        """Loads them.

        Raises:
            WeightsError: for a missing or corrupted file.
        """
        cls.check(paths)
        for component in ("clip", "image_reward", "dino"):
            verify(WEIGHTS, component)
        return emoji_scorers(WEIGHTS, device)

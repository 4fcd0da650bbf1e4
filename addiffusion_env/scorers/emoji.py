"""The emoji world's scorers of previews and finished images, included in the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from addiffusion_env.backbones.emoji import WEIGHTS, verify
from addiffusion_env.backbones.emoji.objects import Maps, ObjectReader, candidates, load_object_reader, scene_logits
from addiffusion_env.errors import ConfigError, WeightsError
from addiffusion_env.files import folder_of, read_json
from addiffusion_env.prompts.emoji_grammar import emoji_prompt, parse
from addiffusion_env.prompts.emoji_vocabulary import IMAGE_SIZE
from addiffusion_env.scorers import CHUNK, ModelScorer, compute, load_transformers
from addiffusion_env.scorers.clip import ClipScorer, embedding_width
from addiffusion_env.scorers.dino import DinoEmbedder
from addiffusion_env.scorers.image_scores import ImageScorers
from addiffusion_env.scorers.preprocess import Preprocess
from addiffusion_env.scorers.tokens import GroundedEncoder, Tokenizer, beside_or_inside, load_transformers_tokenizer


class BlipPreferenceScorer(ModelScorer):
    """How well an image fits its prompt and how clean it is, in standard deviations.

    A transformers ``BlipForImageTextRetrieval`` whose matching head was trained on rankings (for two
    contradicting scenes and their prompts the matching pairs rank first; a clean image ranks above its degraded copy).
    The score is ``(logit 1 - logit 0 - score_mean) / score_std``, with mean and standard deviation, over matching and
    contradicting pairs, from the model's config: 0 is undecided, +1 is an image that clearly fits.

    Args:
        encoder: image and text -> feature.
        head: (B, encoder.width) -> (B, 2) logits of "does not match" and "matches".
        mean: subtracted from the difference of the logits.
        std: divides it; above 0.
        label: which model this is.
        chunk: images per forward pass.
    """

    name: ClassVar[str] = "blip_preference"
    unit: ClassVar[str] = "standard deviations"
    not_identity = ("label",)

    def __init__(
        self, encoder: GroundedEncoder, head: nn.Module, mean: float, std: float, label: str, *, chunk: int = CHUNK
    ) -> None:
        self.encoder = encoder
        self.head = head.to(device=encoder.device, dtype=torch.float32).eval().requires_grad_(False)
        self.mean = mean
        self.std = std
        self.label = label
        self.chunk = chunk

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        tokenizer: str | Path | None = None,
    ) -> BlipPreferenceScorer:
        """Loads the scorer from a local folder or the hub.

        Args:
            name_or_path: folder with a ``BlipForImageTextRetrieval`` whose config has ``score_mean``, ``score_std``;
                ``None`` is the emoji world's, included in the package.
            device: where the model runs.
            dtype: its precision.
            tokenizer: folder of its tokenizer; by default the model's folder, or ``../tokenizer``.

        Raises:
            WeightsError: when a file is missing or of another model.
        """
        from transformers import BlipForImageTextRetrieval

        folder = verify(WEIGHTS, "image_reward") if name_or_path is None else folder_of(name_or_path)
        model = load_transformers(BlipForImageTextRetrieval, folder, "blip")
        mean, std = (getattr(model.config, key, None) for key in ("score_mean", "score_std"))
        if mean is None or not std or std <= 0:
            raise WeightsError(
                f"{folder}: config.json has score_mean={mean!r}, score_std={std!r}, expected two numbers, std above 0",
                "this is a matching model without the scale of a preference scorer",
            )
        place = Path(tokenizer).expanduser() if tokenizer is not None else beside_or_inside(folder)
        if place is None:
            raise WeightsError(f"no tokenizer in {folder} or next to it", "pass tokenizer=FOLDER")
        text = model.config.text_config
        tokens = Tokenizer(load_transformers_tokenizer(place), int(text.max_position_embeddings))
        size = int(model.config.vision_config.image_size)
        encoder = GroundedEncoder(
            model.vision_model, model.text_encoder, tokens, Preprocess(size=size), device=device, dtype=dtype
        )
        return cls(encoder, model.itm_head, float(mean), float(std), folder.name)

    def _score(self, images: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        logits = self.head(self.encoder(images, texts))
        return (logits[:, 1] - logits[:, 0] - self.mean) / self.std


SUREST = 6.0
"""Log-odds of a prompt's rule count up to this absolute value, odds of 400 to 1; beyond, the matching score decides."""


class EmojiPreferenceScorer(ModelScorer):
    """How well an image fits its prompt and how clean it is, in standard deviations, with the prompt's rule checked.

    The sum of two scores: :class:`BlipPreferenceScorer`'s, and the log-odds that the image shows exactly the objects
    that the prompt asks for, which :func:`~addiffusion_env.backbones.emoji.objects.scene_logits` computes from what an
    :class:`~addiffusion_env.backbones.emoji.objects.ObjectReader` sees. Weights and scale are in the reader's config,
    from matching and contradicting pairs of synthetic images: 0 is undecided, +1 is an image that clearly fits. A
    prompt outside the grammar has no rule: its score is the matching model's alone.

    Args:
        matching: scores the fit of image and text.
        reader: reads the objects.
        weights: of the matching score and of the log-odds.
        mean: subtracted from their sum.
        std: divides it; above 0.
        chunk: images per forward pass.
    """

    name: ClassVar[str] = "emoji_preference"
    unit: ClassVar[str] = "standard deviations"

    def __init__(
        self,
        matching: BlipPreferenceScorer,
        reader: ObjectReader,
        weights: tuple[float, float],
        mean: float,
        std: float,
        *,
        chunk: int = CHUNK,
    ) -> None:
        self.matching = matching
        self.reader = reader.to(device=matching.encoder.device).eval().requires_grad_(False)
        self.weights = weights
        self.mean = mean
        self.std = std
        self.chunk = chunk

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path | None = None, *, device: torch.device | str = "cpu"
    ) -> EmojiPreferenceScorer:
        """Loads the scorer from a folder of emoji weights: ``image_reward/``, ``objects/`` and ``tokenizer/``.

        Args:
            name_or_path: the folder; ``None`` is the one included in the package.
            device: where the models run.

        Raises:
            WeightsError: when a file is missing, corrupted or of another model.
        """
        folder = WEIGHTS if name_or_path is None else folder_of(name_or_path)
        matching = BlipPreferenceScorer.from_pretrained(
            verify(folder, "image_reward"), device=device, tokenizer=verify(folder, "tokenizer")
        )
        reader = load_object_reader(folder, device)
        config = read_json(verify(folder, "objects") / "config.json")
        weights, mean, std = (config.get(f"score_{key}") for key in ("weights", "mean", "std"))
        if not isinstance(weights, list) or len(weights) != 2 or mean is None or not std or std <= 0:
            raise WeightsError(
                f"{folder / 'objects'}: config.json has score_weights={weights!r}, score_mean={mean!r}, "
                f"score_std={std!r}, expected two numbers, a number and a positive number",
                f"train it again: python -m addiffusion_lab.emoji_training objects --out {folder}",
            )
        return cls(matching, reader, (float(weights[0]), float(weights[1])), float(mean), float(std))

    def _score(self, images: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        scores = self.matching._score(images, texts)
        scenes = [_parsed(text) for text in texts]
        known = [row for row, scene in enumerate(scenes) if scene is not None]
        if not known:
            return scores
        encoder = self.matching.encoder
        pixels = encoder.preprocess(images[known], encoder.device, torch.float32)
        found = candidates(Maps(*compute(encoder.engine, maps_of, self.reader, pixels)))
        rule = scene_logits(found, [scene for scene in scenes if scene is not None]).clamp(-SUREST, SUREST)
        joint = (self.weights[0] * scores[known] + self.weights[1] * rule - self.mean) / self.std
        return scores.index_copy(0, torch.tensor(known, device=scores.device), joint)


_parsed = lru_cache(maxsize=4096)(parse)


def maps_of(reader: ObjectReader, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The reader's maps, for :func:`.compute`."""
    return tuple(reader(pixels))


def emoji_scorers(weights_folder: Path, device: torch.device | str = "cpu") -> ImageScorers:
    """CLIP, preference scorer and DINO from a folder of emoji weights.

    Raises:
        WeightsError: when a part is missing.
    """
    folder = Path(weights_folder)
    if not folder.is_dir():
        raise WeightsError(f"no such folder: {folder}", "the emoji weights come with the package: install it again")
    tokenizer = folder / "tokenizer"
    return ImageScorers(
        ClipScorer.from_pretrained(folder / "clip", device=device, tokenizer=tokenizer),
        EmojiPreferenceScorer.from_pretrained(folder, device=device),
        DinoEmbedder.from_pretrained(folder / "dino", device=device),
    )


class EmojiScorers:
    """The :class:`.ScorerLoader` of the shipped weights, each file checked by its sha256."""

    @staticmethod
    def check(paths: Mapping[str, str]) -> Mapping[str, str]:
        """Refuses all paths: the shipped scorers cannot be replaced.

        Raises:
            ConfigError: for any path.
        """
        if paths:
            raise ConfigError(f"the emoji world has its own scorers, got scorers={dict(paths)}", "leave scorers empty")
        return paths

    @staticmethod
    def clip_width(paths: Mapping[str, str]) -> int:
        """Width of the CLIP embedding, from its configuration."""
        return embedding_width(WEIGHTS / "clip")

    @classmethod
    def load(cls, device: torch.device | str, paths: Mapping[str, str]) -> ImageScorers:
        """Loads them.

        Raises:
            WeightsError: for a missing or corrupted file.
        """
        cls.check(paths)
        for component in ("clip", "dino"):
            verify(WEIGHTS, component)
        return emoji_scorers(WEIGHTS, device)


class OpenVinoScorers(EmojiScorers):
    """The same with their image networks on OpenVINO; texts, and how they meet the image, stay in torch."""

    dtype: ClassVar[str] = "float32"

    @classmethod
    def load(cls, device: torch.device | str, paths: Mapping[str, str]) -> ImageScorers:
        """Loads them on the CPU and converts the networks."""
        from addiffusion_env.backbones.openvino import OpenVino

        made = super().load("cpu", paths)
        engine = OpenVino(cls.dtype)
        assert isinstance(made.preference, EmojiPreferenceScorer) and made.dino is not None
        made.clip.engine = made.dino.engine = made.preference.matching.encoder.engine = engine
        made.scores(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE), [emoji_prompt("a photo of a dog")])
        return made


class Bfloat16OpenVinoScorers(OpenVinoScorers):
    """The same in bfloat16."""

    dtype = "bfloat16"

"""ImageReward (Xu et al., 2023, arXiv 2304.05977) in transformers' BLIP classes, from the official files.

The package ``image-reward`` cannot be imported with a current transformers (see :mod:`.image_reward`). Its
network is BLIP-large's image-grounded text encoder with a linear head, and transformers has BLIP: this module renames
the weights of ``ImageReward.pt`` and gives the same scores; a test compares the two where the package can be imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from addiffusion_env.errors import MissingPackageError, WeightsError
from addiffusion_env.files import again, cached, file_in, folder_of, hub_file, looks_like_path, read_json
from addiffusion_env.scorers import BERT_REPO, CHUNK, IMAGE_REWARD_REPO, ModelScorer, load_strict, read_state_dict
from addiffusion_env.scorers.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from addiffusion_env.scorers.tokens import GroundedEncoder, Tokenizer, load_transformers_tokenizer

WEIGHTS_FILE, CONFIG_FILE = "ImageReward.pt", "med_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")

MAX_TOKENS = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Mean and standard deviation of the raw reward over the authors' data, applied once, as in the package."""

HEAD_WIDTH = 64  # width of an attention head in every BLIP vision transformer: base 768 / 12, large 1024 / 16

VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
# BLIP's names -> transformers' BlipVisionModel; the text encoder's are the same.
VISION_NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)


class ImageRewardScorer(ModelScorer):
    """ImageReward-v1.0: human preference of an image for a prompt, standardised to about N(0, 1).

    Texts are truncated to 35 tokens, as published. The centre square of an image is scored.

    Args:
        encoder: image and text -> feature.
        head: (B, encoder.width) -> (B, 1) raw reward.
        chunk: images per forward pass.
    """

    name: ClassVar[str] = "image_reward"
    unit: ClassVar[str] = "standard deviations"

    def __init__(self, encoder: GroundedEncoder, head: nn.Module, *, chunk: int = CHUNK) -> None:
        self.encoder = encoder
        self.head = head.to(device=encoder.device, dtype=torch.float32)  # the package's head is float32 too
        self.label = "ImageReward-v1.0"
        self.chunk = chunk

    @classmethod
    def needs(cls) -> str:
        """Its weights, unless they are in the hub's cache."""
        return "" if cached(IMAGE_REWARD_REPO, WEIGHTS_FILE) else f"weights {IMAGE_REWARD_REPO}"

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = IMAGE_REWARD_REPO,
        *,
        med_config: str | Path | None = None,
        tokenizer: str | Path = BERT_REPO,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> ImageRewardScorer:
        """Loads the official checkpoint.

        Args:
            name_or_path: hub id, folder with ``ImageReward.pt`` and ``med_config.json``, or the path of the former.
            med_config: path of the latter, if it is elsewhere.
            tokenizer: hub id or folder of the BERT tokenizer, lower case.
            device: where the model runs.
            dtype: its precision; float16 halves the 1.8 GB.

        Raises:
            WeightsError: when a file is missing, cannot be fetched, or does not hold ImageReward.
        """
        weights, config = locate(name_or_path, med_config)
        text_config = read_json(config)
        tokens = bert_tokenizer(folder_of(tokenizer, TOKENIZER_FILES))
        state = read_state_dict(weights)
        vision, text = vision_model(state, str(weights)), text_model(state, text_config, str(weights))
        head = linear_head(state, HEAD, str(weights), int(text.config.hidden_size))
        size = int(vision.config.image_size)
        preprocess = Preprocess(size=size, mean=CLIP_MEAN, std=CLIP_STD)
        return cls(GroundedEncoder(vision, text, tokens, preprocess, device=device, dtype=dtype), head)

    def _score(self, images: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        return (self.head(self.encoder(images, texts)).squeeze(1) - MEAN) / STD


def locate(name_or_path: str | Path, med_config: str | Path | None) -> tuple[Path, Path]:
    """The paths of ``ImageReward.pt`` and ``med_config.json``.

    Raises:
        WeightsError: when one of them cannot be found or fetched.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        weights = file_in(path, WEIGHTS_FILE)
    elif path.is_file():
        weights = path
    elif looks_like_path(name_or_path):
        raise WeightsError(
            f"no such file or folder: {path}", f"give {WEIGHTS_FILE}, its folder, or the hub id {IMAGE_REWARD_REPO}"
        )
    else:
        weights = hub_file(str(name_or_path), WEIGHTS_FILE, (WEIGHTS_FILE, CONFIG_FILE))
    if med_config is not None:
        config = Path(med_config).expanduser()
    elif path.exists():
        config = file_in(weights.parent, CONFIG_FILE)
    else:
        config = hub_file(str(name_or_path), CONFIG_FILE)
    return weights, config


def part(state: Mapping[str, torch.Tensor], prefix: str, where: str) -> dict[str, torch.Tensor]:
    """The weights under ``prefix``, without it.

    Raises:
        WeightsError: when there are none, so the file is of another kind.
    """
    found = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    if not found:
        raise WeightsError(
            f"{where} holds no {prefix}* (its first names: {', '.join(list(state)[:3]) or 'none'})",
            f"this is not ImageReward; the official file is {WEIGHTS_FILE} of {IMAGE_REWARD_REPO}",
        )
    return found


def vision_model(state: Mapping[str, torch.Tensor], where: str) -> Any:
    """The vision transformer, its shape read from the weights (official: 24 layers of 1024, patch 16, 224 pixels)."""
    from transformers import BlipVisionConfig, BlipVisionModel

    renamed = {}
    for name, value in part(state, VISION, where).items():
        for pattern, replacement in VISION_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    try:
        patch = renamed["embeddings.patch_embedding.weight"].shape[-1]
        positions, width = renamed["embeddings.position_embedding"].shape[1:]
        hidden = renamed["encoder.layers.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{where}: no BLIP vision transformer: {error}", again(Path(where))) from error
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=len({name.split(".")[2] for name in renamed if name.startswith("encoder.layers.")}),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,  # timm's, not transformers' default of 1e-5
    )
    model = BlipVisionModel(config)
    load_strict(model, renamed, where)
    return model


def text_model(state: Mapping[str, torch.Tensor], med_config: Mapping[str, Any], where: str) -> Any:
    """The text encoder of ``med_config.json``, with cross-attention to the vision transformer."""
    from transformers import BlipTextConfig, BlipTextModel

    weights = part(state, TEXT, where)
    key = "encoder.layer.0.crossattention.self.key.weight"
    if key not in weights:
        raise WeightsError(f"{where}: missing {TEXT}{key}", "this text encoder has no cross-attention")
    names = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    names += ["max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id"]
    lacking = [name for name in names if name not in med_config]
    if lacking:
        raise WeightsError(
            f"{CONFIG_FILE} lacks {', '.join(lacking)}", f"it is next to {WEIGHTS_FILE} in {IMAGE_REWARD_REPO}"
        )
    settings = {name: med_config[name] for name in names}
    # encoder_width in the file says 768, but the package overwrites it with the vision transformer's width.
    config = BlipTextConfig(**settings, encoder_hidden_size=weights[key].shape[1], is_decoder=True)
    model = BlipTextModel(config, add_pooling_layer=False)
    load_strict(model, weights, where, ignore=lambda name: name == "embeddings.position_ids")
    return model


def bert_tokenizer(folder: Path) -> Tokenizer:
    """The BERT tokenizer with BLIP's extra tokens, which a prompt could contain literally: ``[DEC]`` and ``[ENC]``."""
    import transformers

    # The hub folder's files do not name their class. Before transformers 5 the plain name is the slow tokenizer.
    tokenizer_class = getattr(transformers, "BertTokenizerFast", transformers.BertTokenizer)
    tokenizer = load_transformers_tokenizer(folder, tokenizer_class.from_pretrained)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    return Tokenizer(tokenizer, MAX_TOKENS)


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


REMEDY = (
    "use the scorer 'image_reward': the same weights and numbers without the package; or make a separate environment "
    "with image-reward==1.5, transformers==4.55.4, timm==0.6.13, diffusers==0.35.2, clip-anytorch and setuptools<81"
)


def import_package() -> Any:
    """Imports and returns the module ``ImageReward``.

    Raises:
        MissingPackageError: with the reason: not installed, or one of its own imports fails.
    """
    try:
        import ImageReward
    except Exception as error:  # with a current transformers various errors occur
        raise MissingPackageError(
            f"the package ImageReward cannot be imported: {type(error).__name__}: {error}", REMEDY
        ) from error
    return ImageReward


class ImageRewardPackageScorer(ModelScorer):
    """ImageReward-v1.0 through its package: images go through PIL one by one, so it is slow; used as a reference.

    Args:
        model: what ``ImageReward.load`` returns.
    """

    chunk = 1
    name: ClassVar[str] = "image_reward_package"
    unit: ClassVar[str] = "standard deviations"

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def needs(cls) -> str:
        """Its package, which requires older versions of others (see :func:`import_package`), and its weights."""
        from importlib.util import find_spec

        return "" if find_spec("ImageReward") else "the extra [image-reward], transformers 4.55 and weights"

    @classmethod
    def from_pretrained(
        cls, name_or_path: str = "ImageReward-v1.0", *, med_config: str | None = None, device: str = "cpu"
    ) -> ImageRewardPackageScorer:
        """Loads a model by the package's name for it, or from the path of its checkpoint.

        Raises:
            MissingPackageError: when the package cannot be imported.
        """
        return cls(import_package().load(name_or_path, device=device, med_config=med_config))

    def _score(self, images: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        from PIL import Image

        pixels = ((images[0].float() + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        return torch.tensor([self.model.score(texts[0], Image.fromarray(pixels))])

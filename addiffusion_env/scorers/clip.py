"""CLIP through open_clip: unit embeddings of images and texts, and their raw cosine."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from addiffusion_env.backbones.fingerprint import LruCache, versions_of
from addiffusion_env.errors import ConfigError, WeightsError, unknown
from addiffusion_env.files import ask_hub, cached, file_in, looks_like_path, read_json, reason_of, unavailable
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers import (
    CHUNK,
    Embedder,
    Scorer,
    check_images,
    check_pairs,
    in_chunks,
    load_strict,
    read_state_dict,
    require_finite,
    some,
    texts_of,
)
from addiffusion_env.scorers.preprocess import Preprocess, side_of
from addiffusion_env.scorers.tokens import Tokenizer, choose_tokenizer

if TYPE_CHECKING:
    from addiffusion_env.backbones.openvino import OpenVino


class ClassTokenBlock(nn.Module):
    """open_clip's ``ResidualAttentionBlock``, computed at the class token only.

    The class token's query against all keys and values gives its row of the full attention, so the result equals the
    block's first token up to rounding; the other queries and the MLP on the other tokens are omitted.

    Args:
        block: the block whose weights are used.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor, *unused: Any, **masks: Any) -> torch.Tensor:
        """(B, T, width) tokens -> (B, 1, width): the class token; vision blocks have no masks."""
        block = self.block
        keys = block.ln_1(x)
        token = x[:, :1] + block.ls_1(block.attn(keys[:, :1], keys, keys, need_weights=False)[0])
        return token + block.ls_2(block.mlp(block.ln_2(token)))


def keep_class_token(model: Any) -> bool:
    """Makes the last block of ``model.visual`` compute only the class token, which is what is pooled.

    In a 4-layer model that saves a quarter of the image encoder's time, in ViT-L/14 about 3 %.

    Args:
        model: an open_clip model; changed in place when its layout is the one known here.

    Returns:
        Whether it was changed: open_clip's ``VisionTransformer`` of plain blocks, batch first, pooled at the class
        token.
    """
    visual = getattr(model, "visual", None)
    blocks: Any = getattr(getattr(visual, "transformer", None), "resblocks", ())
    # The first block must stay unchanged: open_clip reads the weights' dtype from it.
    if len(blocks) < 2 or type(blocks[-1]).__name__ != "ResidualAttentionBlock":
        return False
    plain = (
        getattr(visual, "pool_type", None) == "tok"
        and getattr(visual, "attn_pool", True) is None
        and not getattr(visual, "output_tokens", True)
        and getattr(blocks[-1].attn, "batch_first", False)
    )
    if plain:
        blocks[-1] = ClassTokenBlock(blocks[-1])
    return plain


CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
"""In open_clip's order: the other files may use transformers' layout."""
REMEMBERED_TEXTS = 4096


class ClipScorer(Scorer, Embedder):
    """The cosine of a CLIP model's image and text embeddings, raw: not clipped, not times 100, no prefix.

    CLIPScore is reported in three scales over many backbones (Hessel et al. 2021: 2.5 max(cos, 0); torchmetrics:
    100 cos), which are not comparable, so :attr:`label` names the model and the unit is always the cosine.

    Text embeddings are cached by text as long as model and tokenizer stay the same: in an episode the prompt is
    constant and only the images change.

    Args:
        model: an open_clip model (``encode_image``, ``encode_text``); modified in place: moved, frozen, and its last
            vision block reduced to the pooled token (see :func:`keep_class_token`).
        tokenizer: texts -> ids of the model's context length.
        preprocess: images in [-1, 1] -> the model's input.
        label: which model this is.
        device: where the model runs.
        dtype: its precision; results are float32 in any case.
        chunk: images, or texts, per forward pass.

    Attributes:
        dim: length of the embeddings.
        label: for column heads, for example ``"ViT-L-14/openai"``.
        engine: runs the image tower; ``None`` for torch.
    """

    engine: OpenVino | None = None
    name: ClassVar[str] = "clip"
    unit: ClassVar[str] = "cosine"
    not_identity = ("label", "_texts", "_encoded_by", "_last")

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        label: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        chunk: int = CHUNK,
    ) -> None:
        self.model: Any = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        keep_class_token(self.model)
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.label = label
        self.device = torch.device(device)
        self.dtype = dtype
        self.chunk = chunk
        self._texts: LruCache[torch.Tensor] = LruCache(REMEMBERED_TEXTS)
        self._encoded_by: tuple[Any, ...] = ()
        self._last: tuple[list[str] | None, torch.Tensor] = (None, torch.zeros(0))
        self.dim = int(self._encode_texts(["a"]).shape[1])

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "ViT-L-14",
        pretrained: str | Path = "openai",
        *,
        tag: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        tokenizer: str | Path | Tokenizer | None = None,
    ) -> ClipScorer:
        """Loads an open_clip model by name, or from a local folder.

        Args:
            name_or_path: a name of ``open_clip.list_models()``, or a folder in open_clip's local-dir format
                (``open_clip_config.json`` and weights). A config without the ``"model_cfg"`` wrapper has no
                preprocessing: such a model reads images in [-1, 1] unchanged.
            pretrained: for a name: a pretrained tag of it, or a weights file; unused for a folder.
            tag: for a weights file: the pretrained tag that it was downloaded as. It then gets that tag's activation
                (QuickGELU) and preprocessing. Without it a file gets the settings of the named
                config, as in open_clip, and a warning if a tag of the model has other settings.
            device: where the model runs.
            dtype: its precision.
            tokenizer: a folder with a transformers tokenizer, or a :class:`Tokenizer`; by default the one that
                open_clip chooses (see :func:`.tokens.choose_tokenizer`).

        Raises:
            UnknownNameError: for a name or tag that open_clip does not know.
            ConfigError: for ``tag`` without a weights file.
            WeightsError: when weights are missing, cannot be fetched, or are of another model.
        """
        folder = Path(name_or_path).expanduser()
        if tag is not None and (folder.is_dir() or not Path(pretrained).is_file()):
            raise ConfigError(
                f"tag={tag!r} with {'a folder' if folder.is_dir() else f'pretrained={str(pretrained)!r}'}, expected it "
                "with a name and a weights file",
                "leave it out: a folder's config and a pretrained tag have their own settings",
            )
        if folder.is_dir():
            model, config, preprocess = load_folder(folder)
            tokens = choose_tokenizer(tokenizer, config, folder)
            return cls(model, tokens, preprocess, folder.name, device=device, dtype=dtype)
        if looks_like_path(name_or_path):
            raise WeightsError(f"no such folder: {folder}", f"give a folder with {CONFIG_FILE}, or an open_clip name")
        model, config = load_named(str(name_or_path), str(pretrained), tag)
        preprocess = Preprocess.from_open_clip(model.visual.preprocess_cfg)
        label = f"{name_or_path}/{Path(pretrained).stem if Path(pretrained).is_file() else pretrained}"
        label += f" as {tag}" if tag else ""
        tokens = choose_tokenizer(tokenizer, config, None, str(name_or_path))
        return cls(model, tokens, preprocess, label, device=device, dtype=dtype)

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) images in [-1, 1] of any size -> (B, dim) float32 unit vectors on the CPU."""
        return in_chunks(self._encode_images, check_images(images), size=self.chunk, width=(self.dim,))

    def embed_texts(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """``B`` prompts -> (B, dim) float32 unit vectors on the CPU; cached texts are not encoded again."""
        texts = texts_of(prompts)
        state = (self.model, self.tokenizer, versions_of(self.model))
        if state != self._encoded_by:
            self._texts, self._encoded_by, self._last = LruCache(REMEMBERED_TEXTS), state, (None, torch.zeros(0))
        if texts == self._last[0]:  # a step's scores, observation and reward ask for the same prompts
            return self._last[1]
        found = {text: self._texts.get(text) for text in texts}
        fresh = [text for text, vector in found.items() if vector is None]
        if fresh:
            for text, vector in zip(fresh, in_chunks(self._encode_texts, fresh, size=self.chunk), strict=True):
                self._texts[text] = found[text] = vector
        rows = [vector for text in texts if (vector := found[text]) is not None]
        self._last = (texts, torch.stack(rows) if rows else torch.zeros(0, self.dim))
        return self._last[1]

    def similarity(self, image_embeddings: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """(B, dim) embeddings of :meth:`embed_images` and ``B`` prompts -> (B,) cosines in [-1, 1].

        Raises:
            NumericsError: when a cosine is not finite.
        """
        return self.cosines(image_embeddings, self.embed_texts(prompts), texts_of(prompts))

    def cosines(self, images: torch.Tensor, texts: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        """(B,) cosines of (B, dim) image and text embeddings; ``names`` are the texts, for the error.

        Raises:
            NumericsError: when a cosine is not finite.
        """
        return require_finite((images * texts).sum(1).clamp(-1, 1), f"{self.name} ({self.label})", names)

    def score(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """See :meth:`.Scorer.score`; cosines in [-1, 1]."""
        check_pairs(images, prompts)
        return self.similarity(self.embed_images(images), prompts)

    def _encode_images(self, images: torch.Tensor) -> torch.Tensor:
        engine, pixels = self.engine, self.preprocess(images, self.device, self.dtype)
        features = engine.run(image_tower, self.model.visual, pixels)[0] if engine else self.model.encode_image(pixels)
        return F.normalize(features.float(), dim=-1)  # in float32: in half precision lengths deviate by 1e-3

    def _encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        ids = self.tokenizer(texts).to(self.device)
        # On a CPU one by one: in a batch last digits depend on the others, and a continued run has others to encode.
        rows = ids.split(1) if self.device.type == "cpu" else (ids,)
        return F.normalize(torch.cat([self.model.encode_text(row) for row in rows]).float(), dim=-1)


def image_tower(visual: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The image tower of open_clip's ``CLIP``, which is its ``encode_image``, for :class:`.OpenVino`."""
    return (visual(pixels),)


def build(config: Mapping[str, Any]) -> nn.Module:
    """An open_clip model from its model config, with random weights.

    Raises:
        WeightsError: for a config of another kind, or one that needs a hub file that cannot be downloaded.
    """
    import open_clip

    settings = {name: dict(part) if isinstance(part, Mapping) else part for name, part in config.items()}
    custom = settings.pop("custom_text", False) or "hf_model_name" in settings.get("text_cfg", {})
    if "hf_model_name" in settings.get("text_cfg", {}):
        settings["text_cfg"]["hf_model_pretrained"] = False  # the weights come from the checkpoint
    kind = open_clip.CLIP
    if custom:
        kind = open_clip.CoCa if "multimodal_cfg" in settings else open_clip.CustomTextCLIP
    try:
        return kind(**settings)
    except OSError as error:  # a text tower of transformers: its config is always read from the hub
        raise unavailable(settings["text_cfg"]["hf_model_name"], ["config.json"], reason_of(error)) from error
    except (TypeError, KeyError) as error:
        raise WeightsError(
            f"not an open_clip model config: {error}", "expected embed_dim, vision_cfg, text_cfg"
        ) from error


def embedding_width(name_or_path: str | Path) -> int:
    """Width of a model's embeddings, from its config, without loading weights.

    Raises:
        UnknownNameError: for a name that open_clip does not know.
        WeightsError: for a folder without an open_clip config.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        whole = read_json(file_in(folder, CONFIG_FILE))
        config: Any = whole.get("model_cfg", whole)
    else:
        config = model_config(str(name_or_path))
    return int(config["embed_dim"])


def model_config(name: str) -> dict[str, Any]:
    """The model config that open_clip knows by a name.

    Raises:
        UnknownNameError: for a name that it does not know.
    """
    import open_clip

    config: dict[str, Any] | None = open_clip.get_model_config(name)
    if config is None:
        raise unknown("open_clip model", name, open_clip.list_models())
    return config


def load_folder(folder: Path) -> tuple[nn.Module, Mapping[str, Any], Preprocess]:
    """A model, its model config and its preprocessing from a folder in open_clip's local-dir format.

    Raises:
        WeightsError: when a file is missing or the weights do not match the configured model.
    """
    whole = read_json(file_in(folder, CONFIG_FILE))
    config = whole.get("model_cfg", whole)
    model = build(config)
    weights = file_in(folder, *WEIGHT_FILES)
    load_strict(model, read_state_dict(weights), str(weights))
    size = side_of(getattr(model.visual, "image_size", 224), "image_size")
    if "model_cfg" not in whole:
        return model, config, Preprocess(size=size)
    return model, config, Preprocess.from_open_clip({**whole.get("preprocess_cfg", {}), "size": size})


def load_named(name: str, pretrained: str, tag: str | None = None) -> tuple[Any, Mapping[str, Any]]:
    """A model that open_clip knows by name, with the weights of a tag or file, and its model config.

    Args:
        name: of ``open_clip.list_models()``.
        pretrained: a tag or a file.
        tag: with a file: the tag whose settings it uses.

    Raises:
        UnknownNameError: for an unknown name or tag.
        WeightsError: when the weights cannot be loaded or do not fit.
    """
    import open_clip

    config = model_config(name)
    if tag is not None and not open_clip.get_pretrained_cfg(name, tag):
        raise unknown(f"pretrained tag of {name}", tag, open_clip.list_pretrained_tags_by_model(name))
    source = open_clip.get_pretrained_cfg(name, pretrained)
    if not source and not Path(pretrained).is_file():
        if looks_like_path(pretrained) or not open_clip.list_pretrained_tags_by_model(name):
            raise WeightsError(f"no such weights file: {pretrained}", f"give a file, or a pretrained tag of {name}")
        raise unknown(f"pretrained tag of {name}", pretrained, open_clip.list_pretrained_tags_by_model(name))
    repo_id, _, named = str(source.get("hf_hub", "")).rpartition("/")
    files, weights = ([named], f"{Path(named).stem}.*") if named else (["open_clip*"], "open_clip*model.*")
    if repo_id and not Path(pretrained).is_file() and not cached(repo_id, weights):
        ask_hub(repo_id, files)
    if not source and tag is None:
        warn_of_lost_settings(name, pretrained, config)
    try:
        with warnings.catch_warnings():
            # OpenAI's weights need QuickGELU. For ViT-L-14 open_clip 3 builds GELU nevertheless and only warns, which
            # changes all embeddings; it also warns when the argument below sets it.
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            model = open_clip.create_model(
                name,
                pretrained=pretrained,
                force_quick_gelu=bool(open_clip.get_pretrained_cfg(name, tag or pretrained).get("quick_gelu")),
                force_preprocess_cfg=open_clip.get_pretrained_cfg(name, tag) if tag else None,
            )
    except Exception as error:
        if Path(pretrained).is_file() or not repo_id:
            raise WeightsError(
                f"{pretrained} does not load as {name}: {error}", "check which model it belongs to"
            ) from error
        raise unavailable(repo_id, files, reason_of(error)) from error
    return model, config


def warn_of_lost_settings(name: str, file: str, config: Mapping[str, Any]) -> None:
    """Warns when a pretrained tag of ``name`` has other settings than its config, which a file uses."""
    import open_clip

    plain = {
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "quick_gelu": config.get("quick_gelu", False),
    }
    others = []
    for tag in open_clip.list_pretrained_tags_by_model(name):
        has = {"quick_gelu": False, **open_clip.get_pretrained_cfg(name, tag)}
        if lost := [key for key, value in plain.items() if has.get(key, value) != value]:
            others.append(f"{tag} ({', '.join(lost)})")
    if others:
        warnings.warn(
            f"{file} is read with the settings of {name}'s config; these of its tags have others: {some(others)}\n"
            "pass tag=TAG if the file is of one of them: read as it is now, its scores would be wrong",
            UserWarning,
            stacklevel=4,
        )

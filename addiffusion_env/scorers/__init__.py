"""Scorers and embedders of images. A new scorer is one file and one line here.

Where files come from: :mod:`addiffusion_env.files`.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from addiffusion_env.backbones import Identified
from addiffusion_env.backbones.batches import finite_rows
from addiffusion_env.backbones.devices import quiet_loading
from addiffusion_env.errors import (
    AdDiffusionError,
    ConfigError,
    ImageRangeError,
    NumericsError,
    PromptError,
    ScorerError,
    WeightsError,
)
from addiffusion_env.files import WORKS_OFFLINE, again, file_in, in_a_line, read_json
from addiffusion_env.prompts import Prompt
from addiffusion_env.registry import Registry

if TYPE_CHECKING:
    from addiffusion_env.backbones.openvino import OpenVino

SCORERS = Registry(
    "scorer",
    {
        "clip": "addiffusion_env.scorers.clip:ClipScorer",
        "image_reward": "addiffusion_env.scorers.image_reward:ImageRewardScorer",
        "image_reward_package": "addiffusion_env.scorers.image_reward:ImageRewardPackageScorer",
        "blip_preference": "addiffusion_env.scorers.emoji:BlipPreferenceScorer",
        "emoji_preference": "addiffusion_env.scorers.emoji:EmojiPreferenceScorer",
        "dino": "addiffusion_env.scorers.dino:DinoEmbedder",
        "hps": "addiffusion_env.scorers.hps:HpsScorer",
        "aesthetic": "addiffusion_env.scorers.aesthetic:AestheticScorer",
        "sharpness": "addiffusion_env.scorers.sharpness:SharpnessScorer",
        "emoji_detector": "addiffusion_env.scorers.emoji_detector:EmojiDetectorScorer",
    },
)
"""Name -> class. All have ``from_pretrained``; ``dino`` embeds images for similarity, the others score them."""


_FLATTEN = "composite them over a background first: the packages behind the scorers treat alpha differently"
COLOURS = {
    1: ("grey", "repeat the channel: images.expand(-1, 3, -1, -1)"),
    2: ("grey with alpha", _FLATTEN),
    4: ("RGB with alpha", _FLATTEN),
}
"""Other numbers of channels -> their meaning, and how to convert them to three."""


def check_images(images: torch.Tensor) -> torch.Tensor:
    """Returns ``images`` when they are (B, 3, H, W) floats in [-1, 1]; raises an error otherwise.

    Raises:
        ImageRangeError: for another shape, integer pixels, values outside [-1.01, 1.01], NaN or infinity.
    """
    global _checked
    if not images.is_inference() and (images is _checked[0]() and images._version == _checked[1]):
        return images  # a batch's scorers check it one after another, and each check waits for the device
    if images.ndim == 4 and images.shape[1] in COLOURS:
        kind, remedy = COLOURS[images.shape[1]]
        raise ImageRangeError(f"images must be (B, 3, H, W), got {tuple(images.shape)}: {kind}", remedy)
    if images.ndim != 4 or images.shape[1] != 3:
        raise ImageRangeError(
            f"images must be (B, 3, H, W), got {tuple(images.shape)}", "add the batch dimension, channels first"
        )
    if not images.is_floating_point():
        raise ImageRangeError(
            f"images must be floats in [-1, 1], got {images.dtype}", "convert: images.float() / 127.5 - 1"
        )
    if images.numel():
        low, high = (float(value) for value in images.detach().aminmax())
        if not (low >= -1.01 and high <= 1.01):  # also true for NaN
            raise ImageRangeError(
                f"images must lie in [-1, 1], got [{low:.3g}, {high:.3g}]", "scale: images / 127.5 - 1 for bytes"
            )
    if not images.is_inference():  # those have no version
        _checked = (weakref.ref(images), images._version)
    return images


_checked: tuple[Callable[[], torch.Tensor | None], int] = (lambda: None, 0)  # the last images that passed, as they were


class Scorer(Identified, ABC):
    """Scores images against prompts.

    Scores are stored under its ``identity``, which covers its weights and settings; see :class:`.Identified`.

    Attributes:
        name: the registry name, used in records and column heads.
        unit: the scale of the number, for column heads: ``"cosine"``, ``"standard deviations"`` ...
    """

    name: ClassVar[str]
    unit: ClassVar[str] = ""

    @classmethod
    def needs(cls) -> str:
        """What this machine lacks to run it, in a few words; empty when nothing."""
        return ""

    @abstractmethod
    def score(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Scores (B, 3, H, W) images in [-1, 1] against ``B`` prompts; returns (B,) float32 on the CPU.

        Raises:
            ImageRangeError: for images of the wrong shape, type or range.
            PromptError: when there is not one prompt per image.
            NumericsError: when a score is not finite.
        """


class Embedder(Identified, ABC):
    """Maps images (and, for two-tower models, texts) to unit vectors.

    Attributes:
        dim: length of the vectors.
    """

    dim: int

    @classmethod
    def needs(cls) -> str:
        """As :meth:`Scorer.needs`."""
        return ""

    @abstractmethod
    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) images in [-1, 1] -> (B, dim) float32 unit vectors on the CPU."""


CHUNK = 64
"""Images per forward pass: enough to use a GPU with a ViT-L fully, few enough to fit next to a diffusion model."""


def texts_of(prompts: Sequence[Prompt]) -> list[str]:
    """The texts of ``prompts``; plain strings are accepted too.

    Raises:
        PromptError: for a single string instead of a list, or an entry that is neither a prompt nor a string.
    """
    if isinstance(prompts, (str, Prompt)):
        raise PromptError(f"prompts must be a sequence, one per image, got {prompts!r}", "wrap it in a list")
    return [(prompt if isinstance(prompt, Prompt) else Prompt.of(prompt)).text for prompt in prompts]


def check_pairs(images: torch.Tensor, prompts: Sequence[Prompt]) -> list[str]:
    """Checks ``images`` (see :func:`check_images`) and that there is one prompt per image; returns the texts.

    Raises:
        ImageRangeError: for images of the wrong shape, type or range.
        PromptError: when the numbers differ.
    """
    texts = texts_of(prompts)
    if len(texts) != len(check_images(images)):
        raise PromptError(f"{len(images)} images but {len(texts)} prompts", "pass one prompt for each image")
    return texts


def in_chunks(
    function: Callable[..., torch.Tensor], *inputs: Any, size: int = CHUNK, width: tuple[int, ...] = ()
) -> torch.Tensor:
    """Applies ``function`` to slices of ``inputs`` without gradients; joins the results on the CPU, in float32.

    Args:
        function: takes one slice of each input, returns (b, width...) of any dtype on any device.
        *inputs: tensors or sequences of equal length B.
        size: length of a slice.
        width: the shape of one row, used when B is 0.

    Returns:
        (B, width...) float32 on the CPU.
    """
    if size < 1:
        raise ConfigError(f"chunk size must be at least 1, got {size}", f"leave it at {CHUNK}")
    parts = [torch.zeros(0, *width)]
    with torch.no_grad():
        for start in range(0, len(inputs[0]), size):
            rows = function(*(value[start : start + size] for value in inputs))
            parts.append(rows.to(device="cpu", dtype=torch.float32))
    return torch.cat(parts)


def compute(
    engine: OpenVino | None,
    function: Callable[..., tuple[torch.Tensor, ...]],
    network: nn.Module,
    *inputs: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """``function(network, *inputs)``, in torch without an engine."""
    return function(network, *inputs) if engine is None else engine.run(function, network, *inputs)


def require_finite(values: torch.Tensor, scorer: str, texts: Sequence[str]) -> torch.Tensor:
    """Returns ``values`` (B, ...) when all are finite.

    Raises:
        NumericsError: naming the scorer and the text of the first row that is not.
    """
    wrong = ~(finite_rows(values) if values.ndim > 1 and values.numel() else torch.isfinite(values))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise NumericsError(
            f"{scorer} gave a value that is not finite for {int(wrong.sum())} of {len(values)} images, "
            f"first for {texts[row]!r}",
            "score in float32 (half precision can overflow), and check the images",
        )
    return values


@contextmanager
def named(scorer: str) -> Iterator[str]:
    """Context manager that adds the scorer's name to its errors; yields the name.

    Errors of this package and out-of-memory errors are not changed.

    Raises:
        ScorerError: for any other error, which becomes its cause.
    """
    try:
        yield scorer
    except (AdDiffusionError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:200]
        raise ScorerError(
            f"{scorer} raised {type(error).__name__}: {first}", "fix the scorer, or use another one"
        ) from error


class ModelScorer(Scorer):
    """A scorer whose model takes a few images and texts at a time.

    Attributes:
        label: which model this is; empty if there is only one.
        chunk: images per forward pass.
    """

    label: str = ""
    chunk: int = CHUNK

    def score(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """See :meth:`.Scorer.score`."""
        texts = check_pairs(images, prompts)
        scores = in_chunks(self._score, images, texts, size=self.chunk)
        return require_finite(scores, f"{self.name} ({self.label})" if self.label else self.name, texts)

    @abstractmethod
    def _score(self, images: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """(b, 3, H, W) images in [-1, 1] and ``b`` texts -> (b,) scores, without gradients, on any device."""


IMAGE_REWARD_REPO, BERT_REPO = "THUDM/ImageReward", "bert-base-uncased"
"""Hub ids of ImageReward's weights and of its tokenizer."""


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads a state dict from ``.safetensors`` or from a torch file (bare, or wrapped in ``"state_dict"``).

    Torch files are read with ``weights_only=True``: no code in them is executed.

    Raises:
        WeightsError: for a missing, truncated or foreign file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"no such weights file: {path}", f"check the path; {WORKS_OFFLINE}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"cannot read {path} as weights: {in_a_line(error)}", again(path)) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict (a mapping of names to tensors)", "check which file it is")
    return dict(state)


def some(names: Sequence[str], count: int = 3) -> str:
    """The first few of ``names`` and how many more there are.

    >>> some(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    listed = ", ".join(list(names)[:count])
    return f"{listed} and {len(names) - count} more" if len(names) > count else listed


def load_strict(
    module: nn.Module, state: Mapping[str, torch.Tensor], where: str, ignore: Callable[[str], bool] = lambda name: False
) -> None:
    """Loads ``state`` into ``module``; every parameter must exist with its shape, and no other.

    Args:
        module: filled in place.
        state: names as in ``module.state_dict()``.
        where: the file, for messages.
        ignore: returns whether an unexpected name may be dropped.

    Raises:
        WeightsError: listing some of the missing, unexpected or wrongly shaped parameters.
    """
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    foreign = sorted(name for name in state.keys() - wanted.keys() if not ignore(name))
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    parts = {"missing": missing, "unexpected": foreign, "of another shape": shapes}
    wrong = "; ".join(f"{kind}: {some(names)}" for kind, names in parts.items() if names)
    if wrong:
        raise WeightsError(
            f"{where} does not fit {type(module).__name__}: {wrong}", "check which model the file belongs to"
        )
    module.load_state_dict({name: state[name] for name in wanted})


def load_transformers(model_class: Any, folder: Path, model_type: str) -> Any:
    """Loads a transformers model from a local folder, in evaluation mode, float32, without gradients.

    ``from_pretrained`` initialises missing weights at random and only warns; here that is an error.

    Args:
        model_class: the transformers class.
        folder: holds ``config.json`` and the weights.
        model_type: expected ``model_type`` of ``config.json``.

    Raises:
        WeightsError: for a folder of another kind of model, or with weights missing.
    """
    found = read_json(file_in(folder, "config.json")).get("model_type")
    if found != model_type:
        raise WeightsError(
            f"{folder} holds a model of type {found!r}, expected {model_type!r}", "point to the right folder"
        )
    file_in(folder, "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
    try:
        with quiet_loading():
            model, info = model_class.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    except Exception as error:
        raise WeightsError(
            f"cannot load {folder} as {model_class.__name__}: {in_a_line(error)}", again(folder / "*")
        ) from error
    lacking = sorted(str(name) for name in [*info["missing_keys"], *info["mismatched_keys"]])
    if lacking:
        raise WeightsError(
            f"{folder} lacks weights of {model_class.__name__}: {some(lacking)}",
            "check which model the folder belongs to",
        )
    return model.float().eval().requires_grad_(False)

"""DINOv2 embeddings: similarity of images, independent of their prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F

from addiffusion_env.errors import WeightsError
from addiffusion_env.files import again, folder_of, in_a_line
from addiffusion_env.scorers import CHUNK, Embedder, check_images, compute, in_chunks, load_transformers
from addiffusion_env.scorers.preprocess import Preprocess

if TYPE_CHECKING:
    from addiffusion_env.backbones.openvino import OpenVino

FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


class DinoEmbedder(Embedder):
    """The normalised class token of a DINOv2 model (Oquab et al., 2023, arXiv 2304.07193).

    Args:
        model: a transformers ``Dinov2Model``.
        preprocess: images in [-1, 1] -> the model's input.
        label: which model this is.
        device: where the model runs.
        dtype: its precision; results are float32 in any case.
        chunk: images per forward pass.

    Attributes:
        dim: length of the embeddings: 96 for the emoji world's, 384 for dinov2-small.
        label: for column heads.
        engine: runs the model; ``None`` for torch.
    """

    engine: OpenVino | None = None
    name: ClassVar[str] = "dino"
    not_identity = ("label",)

    def __init__(
        self,
        model: Any,
        preprocess: Preprocess,
        label: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        chunk: int = CHUNK,
    ) -> None:
        self.model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.preprocess = preprocess
        self.label = label
        self.device = torch.device(device)
        self.dtype = dtype
        self.chunk = chunk
        self.dim = int(model.config.hidden_size)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "facebook/dinov2-small",
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> DinoEmbedder:
        """Loads a ``Dinov2Model`` from a local folder or the hub.

        Images are prepared as ``preprocessor_config.json`` says (DINOv2: shortest side 256, centre 224, ImageNet
        mean and std), resized as Pillow does; without that file images in [-1, 1] are read at the config's size.

        Raises:
            WeightsError: when weights are missing, cannot be fetched, or are of another model, or when that file
                requires a step that :class:`.preprocess.Preprocess` does not support.
        """
        from transformers import Dinov2Model

        folder = folder_of(name_or_path, FILES)
        model = load_transformers(Dinov2Model, folder, "dinov2")
        preprocess = preprocess_of(folder) or Preprocess(size=int(model.config.image_size))
        label = folder.name if Path(name_or_path).expanduser().is_dir() else str(name_or_path)
        return cls(model, preprocess, label, device=device, dtype=dtype)

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) images in [-1, 1] of any size -> (B, dim) float32 unit vectors on the CPU."""
        return in_chunks(self._encode, check_images(images), size=self.chunk, width=(self.dim,))

    @staticmethod
    def similarity(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """(B, dim) and (B, dim) embeddings of :meth:`embed_images` -> (B,) cosines in [-1, 1]."""
        return (first * second).sum(1).clamp(-1, 1)

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        pixels = self.preprocess(images, self.device, self.dtype)
        return F.normalize(compute(self.engine, pooled, self.model, pixels)[0].float(), dim=-1)


def pooled(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The normalised class token, for :func:`.compute`."""
    return (model(pixel_values=pixels).pooler_output,)


def preprocess_of(folder: Path) -> Preprocess | None:
    """Settings of ``preprocessor_config.json`` in ``folder``, with its class's defaults; ``None`` without that file.

    Raises:
        WeightsError: when transformers cannot read the file, or it requires an unknown step.
    """
    from transformers import AutoImageProcessor

    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return None
    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise WeightsError(f"{file} is not an image processor's: {in_a_line(error)}", again(file)) from error
    return Preprocess.from_transformers(processor.to_dict())

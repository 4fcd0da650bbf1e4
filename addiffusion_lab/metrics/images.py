"""Images from tensors, arrays, files or a folder, read in batches as bytes, and identified by their content.

Metrics use 8-bit pixels for any source: the format in which images are saved, and that Inception was trained on.
A grey file is read as three equal channels, and transparency is dropped, not composited, as in torch-fidelity,
pytorch-fid and clean-fid.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch

from addiffusion_env.errors import ConfigError, ImageRangeError
from addiffusion_env.scorers import check_images
from addiffusion_env.scorers.image_scores import to_pixels

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LOSSY = (".jpg", ".jpeg", ".webp")
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes with one high-precision channel; all other modes are converted to RGB correctly."""

ImagesLike: TypeAlias = "Images | torch.Tensor | np.ndarray | str | Path | Sequence[Any]"
"""A (B, 3, H, W) float tensor in [-1, 1]; a (B, H, W, 3) uint8 array; a folder; or a sequence of paths, of files as
bytes (as ``RecordStore.images`` gives them), of such tensors without batch, or of such arrays without batch."""


@dataclass(frozen=True)
class Images:
    """A set of images, in order. Files are read lazily, so that a folder of 30,000 fits into memory.

    Attributes:
        items: paths, files as bytes, (3, H, W) float tensors in [-1, 1] or (H, W, 3) uint8 arrays.
        known: features of all images, by the identity of their network: shared by FID and KID.
    """

    items: Sequence[Path | bytes | torch.Tensor | np.ndarray]
    known: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, source: ImagesLike) -> Images:
        """Wraps any of :data:`ImagesLike`; a folder gives its images (without subfolders) by file name.

        Raises:
            ConfigError: for a path that does not exist, or no images at all.
            ImageRangeError: for a tensor or array of another shape, type or range.
        """
        if isinstance(source, Images):
            return source
        if isinstance(source, (str, Path)):
            folder = Path(source).expanduser()
            if not folder.is_dir():
                raise ConfigError(f"{folder} is not a folder of images", "pass an existing folder, or a list of files")
            items: Sequence[Any] = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        elif isinstance(source, torch.Tensor):
            items = list(check_images(source))
        else:
            items = [Path(item).expanduser() if isinstance(item, str) else item for item in source]
        if not items:
            raise ConfigError("a metric needs images, got none", "pass at least one")
        return cls(items)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8, one after the other."""
        return (pixels_of(item) for item in self.items)

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """(b, 3, H, W) uint8 tensors in order; consecutive images of equal size share a batch of at most ``size``."""
        waiting: list[np.ndarray] = []
        for pixels in self:
            if waiting and (len(waiting) >= size or pixels.shape != waiting[0].shape):
                yield _stack(waiting)
                waiting = []
            waiting.append(pixels)
        yield _stack(waiting)

    def digest(self) -> str:
        """64 hex digits of all pixels and shapes, in order, independent of the container."""
        return hashlib.sha256("".join(content_hash(pixels) for pixels in self).encode()).hexdigest()

    def lossy(self) -> int:
        """Number of files of a lossy format."""
        return sum(isinstance(item, Path) and item.suffix.lower() in LOSSY for item in self.items)


def pixels_of(item: Path | str | bytes | torch.Tensor | np.ndarray) -> np.ndarray:
    """One image as (H, W, 3) uint8.

    Raises:
        ConfigError: for a file that is missing or not an image.
        ImageRangeError: for a tensor or array of another shape, type or range.
    """
    if isinstance(item, (str, Path)):
        return _read(Path(item).expanduser())
    if isinstance(item, bytes):
        return _decode(io.BytesIO(item), f"a file of {len(item)} bytes")
    if isinstance(item, torch.Tensor):
        return to_pixels(check_images(item[None])[0])
    if not (isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.ndim == 3 and item.shape[2] == 3):
        seen = f"{item.dtype} {item.shape}" if isinstance(item, np.ndarray) else type(item).__name__
        raise ImageRangeError(
            f"an image must be a path, file bytes, (3, H, W) float tensor or (H, W, 3) uint8 array, got {seen}",
            "convert it: floats in [-1, 1] are tensors, bytes are arrays with channels last",
        )
    return item


def content_hash(pixels: np.ndarray) -> str:
    """64 hex digits of an (H, W, 3) uint8 image: its pixels and shape, not its file."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _read(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            return _decode(file, str(path))
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise ConfigError(f"no image at {path}", "check the path") from error
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "check the file and its permissions") from error


def _decode(file: BinaryIO, name: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            if image.mode in DEEP:
                raise ConfigError(
                    f"{name} has more than 8 bits per pixel (Pillow's mode {image.mode!r}), which Pillow would clip to "
                    "white, expected 8",
                    "save it with 8 bits per channel",
                )
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise ConfigError(f"{name} cannot be read as an image: {error}", "regenerate it as PNG") from error


def _stack(images: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()

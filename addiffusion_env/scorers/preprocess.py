"""Preprocessing of images in [-1, 1] for vision models, on tensors: resize, crop, normalise, on the images' device.

The published pipelines resize PIL images. Pillow resizes the rows, then the columns, and rounds to bytes after each.
Interpolating floats in one pass, as torch does, gives other pixels: when noise is shrunk, one in seven differs by one
level; when it is enlarged, some differ by 20 levels, because the overshoot between the two passes is not clipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from addiffusion_env.errors import WeightsError

PRECISION = 22
"""Bits after the binary point of Pillow's weights for 8-bit images (``PRECISION_BITS`` in its ``Resample.c``)."""

TOGETHER = 8  # images a pass: in float64, 1024 pixels a side, 8 of them are 200 MB


def _bilinear(x: torch.Tensor) -> torch.Tensor:
    return (1 - x.abs()).clamp(min=0)


def _bicubic(x: torch.Tensor, a: float = -0.5) -> torch.Tensor:
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


FILTERS = {"bilinear": (_bilinear, 1.0), "bicubic": (_bicubic, 2.0)}
"""Name -> the filter and its support, in pixels of the coarser grid."""


@lru_cache(maxsize=64)
def weights(before: int, after: int, interpolation: str) -> torch.Tensor:
    """(after, before) float64: weight of each pixel of ``before`` for each of ``after``, at Pillow's precision.

    >>> [round(weight, 4) for weight in weights(4, 2, "bilinear")[0].tolist()]
    [0.4286, 0.4286, 0.1429, 0.0]
    """
    filter_, reach = FILTERS[interpolation]
    scale = before / after
    stretch = max(scale, 1.0)  # when shrinking, the filter covers the whole target pixel: antialiasing
    centre = (torch.arange(after, dtype=torch.float64)[:, None] + 0.5) * scale
    first = (centre - reach * stretch + 0.5).trunc().clamp(min=0)
    last = (centre + reach * stretch + 0.5).trunc().clamp(max=before)
    pixel = torch.arange(before, dtype=torch.float64)
    # Pillow counts from the first pixel of the window: (x + first - centre + 0.5), in this order, times 1 / stretch.
    values = filter_((pixel - centre + 0.5) * (1.0 / stretch))
    values = torch.where((pixel >= first) & (pixel < last), values, 0.0)
    values = values / values.sum(1, keepdim=True)
    fixed = (values * 2**PRECISION + torch.where(values < 0, -0.5, 0.5)).trunc()
    return fixed / 2**PRECISION


def resize_bytes(images: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """(B, 3, H, W) floats in [-1, 1] -> (B, 3, *size) float32 in [-1, 1], on the grid of 8-bit pixels.

    Byte-identical to ``PIL.Image.resize`` of the image saved as PNG. Without float64 (Apple's GPUs) a pixel may
    differ by one level.

    Args:
        images: images; rounded to bytes first.
        size: height and width.
        interpolation: one of :data:`FILTERS`.
    """
    return torch.cat([_resize(some, size, interpolation) for some in images.split(TOGETHER)])


def _resize(images: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    exact = torch.float32 if images.device.type == "mps" else torch.float64
    pixels = _to_bytes((images.float() + 1) * 127.5, half_even=True).to(exact)
    height, width = images.shape[-2:]
    if width != size[1]:
        pixels = _to_bytes(pixels @ weights(width, size[1], interpolation).to(pixels).T)
    if height != size[0]:
        pixels = _to_bytes(weights(height, size[0], interpolation).to(pixels) @ pixels)
    return pixels.float() / 127.5 - 1


def _to_bytes(values: torch.Tensor, half_even: bool = False) -> torch.Tensor:
    """Clips and rounds to 0 ... 255; halves round up, as in Pillow, or to even, as when images are saved."""
    return (values.round() if half_even else (values + 0.5).floor()).clamp(0, 255)


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PROCESSORS = tuple(f"{name}ImageProcessor" for name in ("Bit", "CLIP", "ViT", "Siglip", "DeiT"))
"""transformers' image processors that do the steps below in this order, and nothing else."""
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
"""PIL's constants, as stored by transformers under ``resample``."""
PREPROCESS_YOURSELF = "construct the scorer with your own Preprocess, or use a model with another preprocessing"


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing of one vision model.

    Images that are resized are rounded to bytes, as in the published pipelines, which read files: a score
    in an episode equals that of the image saved as PNG. An image of the right size is not rounded.

    Attributes:
        size: side of the square that the model reads, in pixels; ``None`` for images as they are after resizing.
        mean: per channel, of pixels in [0, 1]. 0.5 with std 0.5 leaves images in [-1, 1] unchanged.
        std: per channel, of pixels in [0, 1].
        resize: length to which ``mode`` resizes; ``None`` for ``size``. DINOv2 resizes to 256 and crops to 224.
        mode: ``"shortest"``: the shorter side becomes ``resize``, the middle is kept; ``"longest"``: the longer side
            does, bars fill the rest; ``"squash"``: both do; ``"none"``: images keep their size.
        interpolation: ``"bicubic"`` or ``"bilinear"``, always with antialiasing.
        fill: what bars are filled with, in [-1, 1]: black.
        floor_margins: an odd margin is cut on the right and below, as transformers does, else by Python's ``round``,
            as torchvision does.
        eight_bit: resize as Pillow resizes 8-bit images; else as torch interpolates floats, which overshoot.
    """

    size: int | None
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resize: int | None = None
    mode: str = "shortest"
    interpolation: str = "bicubic"
    fill: float = -1.0
    floor_margins: bool = False
    eight_bit: bool = True

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any]) -> Preprocess:
        """From open_clip's ``preprocess_cfg``; missing keys get open_clip's defaults.

        Raises:
            WeightsError: for a value that open_clip supports and this class does not.
        """
        return cls(
            size=side_of(config.get("size") or 224, "size"),
            mean=triple(config.get("mean") or CLIP_MEAN),
            std=triple(config.get("std") or CLIP_STD),
            mode=one_of(config.get("resize_mode") or "shortest", ("shortest", "longest", "squash"), "resize_mode"),
            # "random" is for training; open_clip then evaluates with bicubic.
            interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
            fill=(config.get("fill_color") or 0) / 127.5 - 1,
        )

    @classmethod
    def from_transformers(cls, config: Mapping[str, Any]) -> Preprocess:
        """From the settings of a transformers image processor that resizes, crops, rescales and normalises.

        Args:
            config: ``to_dict()`` of the processor, which includes the defaults of its class.

        Raises:
            WeightsError: for any other step or size.
        """
        kind = config.get("image_processor_type", PROCESSORS[0])
        one_of(kind.removesuffix("Pil"), PROCESSORS, "image_processor_type")
        if foreign := sorted(name for name in config if name.startswith("do_") and name not in STEPS and config[name]):
            raise WeightsError(
                f"the image processor has {foreign[0]}=true, expected only {', '.join(STEPS)}", PREPROCESS_YOURSELF
            )
        resizes, crops = config.get("do_resize", True), config.get("do_center_crop", False)
        mode, resize = resizing(config["size"]) if resizes else ("none", None)
        if crops:
            size: int | None = side_of(config["crop_size"], "crop_size")
        else:
            size = resize if mode == "squash" else None
        # ((x * scale) - mean) / std, in one step.
        scale = 255 * config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 255.0
        normalises = config.get("do_normalize", True)
        mean, std = (triple(config[name]) if normalises else None for name in ("image_mean", "image_std"))
        return cls(
            size=size,
            mean=triple([value / scale for value in mean or (0.0,) * 3]),
            std=triple([value / scale for value in std or (1.0,) * 3]),
            resize=resize,
            mode=mode,
            interpolation=INTERPOLATIONS[one_of(config.get("resample", 3), tuple(INTERPOLATIONS), "resample")],
            floor_margins=True,
        )

    def __call__(self, images: torch.Tensor, device: torch.device | str, dtype: torch.dtype) -> torch.Tensor:
        """(B, 3, H, W) images in [-1, 1] -> (B, 3, size, size) of ``dtype`` on ``device``."""
        # Resizing in half precision would band; 64-pixel images and float32 are cheap compared with the model.
        images = self._crop(self._resize(images.to(device=device, dtype=torch.float32)))
        if any(value != 0.5 for value in (*self.mean, *self.std)):
            mean, std = (images.new_tensor(value).view(1, 3, 1, 1) for value in (self.mean, self.std))
            images = ((images + 1) / 2 - mean) / std
        return images.to(dtype)

    def _resize(self, images: torch.Tensor) -> torch.Tensor:
        wanted = self._resized(*images.shape[-2:])
        if wanted == images.shape[-2:]:
            return images
        if self.eight_bit:
            return resize_bytes(images, wanted, self.interpolation)
        return F.interpolate(images, size=wanted, mode=self.interpolation, antialias=True)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing an image of ``height`` and ``width``."""
        target = self.resize or self.size
        if self.mode == "none" or target is None:
            return height, width
        if self.mode == "longest":
            # open_clip divides by the ratio and hpsv2 multiplies by its inverse, which floats round to another pixel
            # at some sizes (576x261 to 224).
            ratio, scale = max(height, width) / target, target / max(height, width)
            sides = (round(side / ratio if self.eight_bit else side * scale) for side in (height, width))
            return max(1, next(sides)), max(1, next(sides))
        if self.mode == "shortest" and height < width:
            return target, int(target * width / height)
        if self.mode == "shortest" and width < height:
            return int(target * height / width), target
        return target, target

    def _crop(self, images: torch.Tensor) -> torch.Tensor:
        if self.size is None:
            return images
        height, width = images.shape[-2:]
        down, across = max(0, self.size - height), max(0, self.size - width)
        if down or across:
            images = F.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2), value=self.fill)
        margins = ((side - self.size) / 2 for side in images.shape[-2:])
        top, left = (int(margin) if self.floor_margins else round(margin) for margin in margins)
        return images[..., top : top + self.size, left : left + self.size]


def one_of(value: Any, known: Sequence[Any], name: str) -> Any:
    """Returns ``value`` if it is in ``known``.

    Raises:
        WeightsError: if it is not, naming the setting ``name`` of a model's preprocessing.
    """
    if value not in known:
        raise WeightsError(f"preprocessing with {name}={value!r}, expected {_listed(known)}", PREPROCESS_YOURSELF)
    return value


def side_of(value: Any, name: str) -> int:
    """The side of a square: from a number, a pair, or transformers' ``{"height", "width"}``.

    Raises:
        WeightsError: when it is not square.
    """
    sides = [value[key] for key in ("height", "width")] if isinstance(value, Mapping) else value
    sides = {int(side) for side in (sides if isinstance(sides, Sequence) else [sides])}
    if len(sides) != 1:
        raise WeightsError(f"preprocessing with {name}={value!r}, expected a square", PREPROCESS_YOURSELF)
    return sides.pop()


def resizing(size: Mapping[str, int] | int) -> tuple[str, int]:
    """Mode and length of :class:`Preprocess` for transformers' ``size``; a number is the shortest edge.

    Raises:
        WeightsError: for any other form.
    """
    if not isinstance(size, Mapping):
        return "shortest", int(size)
    given = {key: value for key, value in size.items() if value is not None}
    if set(given) == {"shortest_edge"}:
        return "shortest", int(given["shortest_edge"])
    if set(given) == {"height", "width"}:
        return "squash", side_of(given, "size")
    raise WeightsError(
        f"preprocessing with size={given}, expected shortest_edge, or height and width", PREPROCESS_YOURSELF
    )


def triple(values: Any) -> tuple[float, float, float]:
    """Three numbers, one per channel; a single one is used for all."""
    first, second, third = values if isinstance(values, Sequence) else (values,) * 3
    return float(first), float(second), float(third)


def _listed(known: Sequence[Any]) -> str:
    return ", ".join(map(str, known[:-1])) + f" or {known[-1]}"

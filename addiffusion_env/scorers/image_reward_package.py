"""An adapter to the authors' package ``image-reward``, for environments that can import it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from addiffusion_env.errors import MissingPackageError
from addiffusion_env.scorers import ModelScorer

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

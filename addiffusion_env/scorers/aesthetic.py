"""The LAION aesthetic predictor, version 2: a linear head on CLIP ViT-L/14; it does not read the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from addiffusion_env.errors import WeightsError
from addiffusion_env.files import WORKS_OFFLINE
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers import Scorer, check_pairs, read_state_dict, require_finite
from addiffusion_env.scorers.clip import ClipScorer
from addiffusion_env.scorers.image_reward import linear_head

HEAD_FILE = "sac+logos+ava1-l14-linearMSE.pth"
HEAD_URL = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth"
)
HEAD_PATH = Path("~/.cache/addiffusion") / HEAD_FILE


class AestheticScorer(Scorer):
    """Predicted human rating of an image, on a scale of about 1 to 10 (SAC, LOGOS and AVA ratings).

    The head reads the L2-normalised embedding of OpenAI's ViT-L/14; with the raw embedding, a common mistake, it
    gives numbers far outside the scale.

    Args:
        clip: the image encoder, unit embeddings.
        head: (B, clip.dim) -> (B, 1).
    """

    name: ClassVar[str] = "aesthetic"
    unit: ClassVar[str] = "rating of about 1 to 10"

    def __init__(self, clip: ClipScorer, head: nn.Module) -> None:
        self.clip = clip
        self.head = head

    @classmethod
    def needs(cls) -> str:
        """Its head, unless it is at the default path."""
        return "" if HEAD_PATH.expanduser().is_file() else f"weights {HEAD_FILE} and CLIP ViT-L-14"

    @classmethod
    def from_pretrained(
        cls,
        head: str | Path = HEAD_PATH,
        *,
        clip: ClipScorer | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> AestheticScorer:
        """Loads the head (3.7 MB, from the authors' GitHub repository, not on the hub) and its CLIP model.

        Args:
            head: the file ``sac+logos+ava1-l14-linearMSE.pth``.
            clip: a loaded ViT-L-14/openai to share; loaded when not given.
            device: where CLIP runs, when it is loaded here.
            dtype: its precision, when it is loaded here.

        Raises:
            WeightsError: when the head or CLIP is missing, or they do not match.
        """
        path = Path(head).expanduser()
        if not path.is_file():
            raise WeightsError(
                f"no aesthetic predictor head at {path}",
                f"on a machine with network run `curl -L --create-dirs -o '{path}' '{HEAD_URL}'`; {WORKS_OFFLINE}",
            )
        state = read_state_dict(path)
        clip = clip or ClipScorer.from_pretrained("ViT-L-14", "openai", device=device, dtype=dtype)
        return cls(clip, linear_head(state, "", str(path), clip.dim))

    def score(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """(B, 3, H, W) images in [-1, 1] -> (B,) ratings; ``prompts`` are ignored except for their number."""
        texts = check_pairs(images, prompts)
        return require_finite(self.rate(self.clip.embed_images(images)), self.name, texts)

    def rate(self, image_embeddings: torch.Tensor) -> torch.Tensor:
        """(B, clip.dim) unit embeddings of the same CLIP model -> (B,) ratings."""
        with torch.no_grad():
            return self.head(image_embeddings).squeeze(1)

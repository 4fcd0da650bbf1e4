"""HPSv2 and HPSv2.1 (Wu et al., 2023, arXiv 2306.09341): CLIP ViT-H/14 tuned on human preferences."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch

from addiffusion_env.errors import WeightsError
from addiffusion_env.files import cached, hub_file, looks_like_path
from addiffusion_env.scorers import load_strict, read_state_dict
from addiffusion_env.scorers.clip import ClipScorer, build, model_config
from addiffusion_env.scorers.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from addiffusion_env.scorers.tokens import Tokenizer, choose_tokenizer

REPO = "xswu/HPSv2"
FILE = "HPS_v2.1_compressed.pt"


class HpsScorer(ClipScorer):
    """The raw cosine of HPSv2.1's embeddings, about 0.2 to 0.35.

    ``hpsv2.score`` returns this number, ``hpsv2.evaluate`` and the published tables 100 times it; v2.0 and v2.1 are
    not comparable, nor are scores of different prompts (README of HPSv2). The package itself is not used: it reloads
    the checkpoint at every call and pins old versions; the computation is open_clip's.
    """

    name: ClassVar[str] = "hps"

    @classmethod
    def needs(cls) -> str:
        """Its weights, unless they are in the hub's cache."""
        return "" if cached(REPO, FILE) else f"weights {REPO}"

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        path: str | Path = REPO,
        *,
        architecture: str = "ViT-H-14",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        tokenizer: str | Path | Tokenizer | None = None,
    ) -> HpsScorer:
        """Loads the checkpoint into open_clip's ``architecture``.

        Args:
            path: the checkpoint file, or the hub repository.
            architecture: open_clip's name of the model config.
            device: where the model runs.
            dtype: its precision; the authors score in float16 autocast.
            tokenizer: as in :meth:`ClipScorer.from_pretrained`.

        Raises:
            UnknownNameError: for an unknown architecture.
            WeightsError: when the checkpoint is missing, cannot be fetched, or is of another model.
        """
        config = model_config(architecture)
        file = Path(path).expanduser()
        if not file.is_file():
            if looks_like_path(path):
                raise WeightsError(f"no such weights file: {file}", f"give {FILE} or the hub id {REPO}")
            file = hub_file(str(path), FILE)
        state = read_state_dict(file)  # before building: a wrong file should not allocate 2.5 GB of random weights
        model = build(config)
        load_strict(model, state, str(file))
        # The authors resize the longer side and fill with black (their ResizeMaxSize), unlike CLIP's centre crop, and
        # they resize tensors of floats, not PIL images.
        size = int(config["vision_cfg"]["image_size"])
        preprocess = Preprocess(size=size, mean=CLIP_MEAN, std=CLIP_STD, mode="longest", eight_bit=False)
        tokens = choose_tokenizer(tokenizer, config, None, architecture)
        return cls(model, tokens, preprocess, f"HPSv2.1 {architecture}", device=device, dtype=dtype)

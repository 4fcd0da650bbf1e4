"""Tiny pipelines and scorers, each built once per session, and the backbones that wrap them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.base import Load
from addiffusion_lab.tiny_pipelines.backbones import BUILDERS, OPTIONS
from addiffusion_lab.tiny_pipelines.parts import tiny_autoencoder
from addiffusion_lab.tiny_pipelines.scorers import scorer_folders


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One thread: for these models more threads are slower, especially on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Tiny:
    """A tiny pipeline.

    Attributes:
        name: name of its backbone.
        folder: its folder in the hub's format.
        pipe: the pipeline itself.
        preview: folder of a tiny decoder for its latents.
    """

    name: str
    folder: Path
    pipe: Any
    preview: Path

    def options(self, **changes: Any) -> dict[str, Any]:
        """Options of the backbone, with previews by the tiny decoder."""
        return {"preview": str(self.preview), **OPTIONS.get(self.name, {}), **changes}

    def load(self, dtype: str = "float32", **changes: Any) -> Any:
        """The backbone from the folder."""
        load = Load(str(self.folder), device="cpu", dtype=dtype, options=self.options(**changes))
        return BACKBONES.load(self.name).from_pretrained(load)

    def wrap(self, pipe: Any = None, **changes: Any) -> Any:
        """The backbone of the loaded pipeline, or of another."""
        return BACKBONES.load(self.name).from_pipeline(pipe or self.pipe, **self.options(**changes))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A function from a backbone's name to its :class:`Tiny`."""
    made: dict[str, Tiny] = {}

    def get(name: str) -> Tiny:
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            pipe = BUILDERS[name](root / "pipeline")
            torch.manual_seed(5)
            tiny_autoencoder(16 if name == "flux" else 4).save_pretrained(root / "preview")
            made[name] = Tiny(name, root / "pipeline", pipe, root / "preview")
        return made[name]

    return get


@pytest.fixture(scope="session")
def scorer_paths(tmp_path_factory):
    """Folders of tiny scorers in the real formats, with CLIP embeddings of the width of ViT-L/14."""
    return scorer_folders(tmp_path_factory.mktemp("scorers"))


@pytest.fixture(scope="session")
def tiny_scorers(scorer_paths):
    from addiffusion_env.scorers.hub_image_scores import hub_scorers

    return hub_scorers("cpu", scorer_paths)

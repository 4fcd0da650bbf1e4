"""Shared fixtures: the embedded backbone (loaded once), a few prompts; settings that silence libraries."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

import addiffusion_lab  # noqa: F401 (registers components that tests iterate over)
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.engine import Engine
from addiffusion_env.envs.settings import EnvSettings, load_backbone, load_scorers
from addiffusion_env.prompts import Prompt
from addiffusion_env.prompts.emoji_grammar import emoji_prompt
from addiffusion_env.scorers.image_scores import ImageScorers

# The doctest collector would import all conftest.py files under the same module name.
collect_ignore_glob = ["conftest.py", "*/conftest.py", "*/*/conftest.py"]

# One thread per process: the suite runs in two processes (make test), and oversubscription is slow.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What was imported stays: no garbage collection searches it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def emoji() -> Backbone:
    return load_backbone(EnvSettings())


@pytest.fixture(scope="session")
def scorers(emoji: Backbone) -> ImageScorers:
    return load_scorers(emoji)


@pytest.fixture
def engine(emoji: Backbone, scorers: ImageScorers) -> Engine:
    return Engine(emoji, scorers)


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    texts = [
        "a photo of a dog",
        "a photo of a red cup and a blue clock",
        "a photo of two cats",
        "a photo of a bus left of a bear",
        "a photo of a green apple",
        "a photo of a train and a kite",
        "a photo of three bananas",
    ]
    return [emoji_prompt(text) for text in texts]

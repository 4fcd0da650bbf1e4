"""Tiny random models of every family, each built once a session, for samplers that need more than the emoji world."""

from __future__ import annotations

import pytest
import torch

from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.base import Load
from addiffusion_lab.tiny_pipelines.backbones import BUILDERS, OPTIONS
from addiffusion_lab.tiny_pipelines.parts import tiny_autoencoder


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A function from a family's name to the folder of a tiny pipeline and the pipeline itself."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "pipeline"
            made[name] = folder, BUILDERS[name](folder)
        return made[name]

    return get


@pytest.fixture(scope="session")
def tiny_backbone(weights, tmp_path_factory):
    """A function from a backbone's name to that backbone on tiny weights."""
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(5)
            preview = tmp_path_factory.mktemp(f"{name}-preview")
            tiny_autoencoder(16 if name == "flux" else 4).save_pretrained(preview)
            options = {"preview": str(preview), **OPTIONS.get(name, {})}
            load = Load(str(weights(name)[0]), device="cpu", dtype="float32", options=options)
            made[name] = BACKBONES.load(name).from_pretrained(load)
        return made[name]

    return get


@pytest.fixture(scope="session")
def on(emoji, tiny_backbone):
    """A function from a backbone's name to it: the emoji world itself, tiny random ones of the others."""
    return lambda name: emoji if name == "emoji" else tiny_backbone(name)

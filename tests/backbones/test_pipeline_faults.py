"""Pipelines that fail by themselves: two lines that say where, at wrapping and not in the middle of a run."""

from __future__ import annotations

import copy

import pytest

from addiffusion_env.backbones import tiny as tiny_models
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.errors import AdDiffusionError


@pytest.mark.parametrize(
    ("part", "made", "words"),
    [
        ("vae", lambda: None, "a StableDiffusionPipeline fails to decode"),
        ("text_encoder", lambda: None, "a StableDiffusionPipeline fails before its first step"),
        ("unet", lambda: tiny_models.unet(in_channels=9), "fail"),
        ("unet", lambda: tiny_models.unet(in_channels=8), "fail"),
        ("unet", lambda: tiny_models.unet(cross_attention_dim=24), "a first step of StableDiffusionPipeline failed"),
    ],
)
def test_a_part_that_does_not_fit(tiny, part, made, words):
    pipe = copy.copy(tiny("sd15").pipe)
    pipe.__dict__[part] = made()
    with pytest.raises(AdDiffusionError, match=words) as caught:
        PipelineBackbone(pipe)
    assert caught.value.cause and caught.value.remedy

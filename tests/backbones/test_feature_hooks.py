"""The denoiser's pooled features: in every evaluation, for every kind of model, independent of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from addiffusion_env.backbones import stable_diffusion
from addiffusion_env.backbones.batches import FeatureHook, hook


def evaluation(backbone, count, only=slice(None)):
    """One evaluation of ``count`` lanes at mixed noise levels, the second without guidance."""
    capabilities = backbone.capabilities
    x = torch.randn(count, *capabilities.latent_shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.from_numpy(backbone.sigmas(4, capabilities.default_spacing)[:count].copy())
    scale = torch.full((count,), capabilities.default_guidance, dtype=torch.float64)
    scale[1:2] = 1.0
    prompts = ["a photo of a red cup", "a dog", "the cat on a sofa"][:count]
    return backbone.predict(x[only], sigma[only], backbone.encode(prompts[only]), scale[only])


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux"])
def test_features_come_with_every_evaluation_and_do_not_depend_on_neighbours(tiny, name):
    backbone = tiny(name).wrap()
    together = evaluation(backbone, 3)
    assert together.features.shape == (3, backbone.capabilities.feature_dim)
    assert together.features.dtype == torch.float32
    torch.testing.assert_close(evaluation(backbone, 3).features, together.features, rtol=0, atol=0)
    for row in range(3):
        alone = evaluation(backbone, 3, slice(row, row + 1)).features
        torch.testing.assert_close(alone, together.features[row : row + 1], rtol=0, atol=1e-5)
    assert not torch.allclose(together.features[0], together.features[1], atol=1e-3)


def test_features_are_the_mean_of_the_middle_block(tiny):
    backbone = tiny("sd15").wrap()
    kept = []
    handle = backbone.denoiser.mid_block.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        found = evaluation(backbone, 2).features
    finally:
        handle.remove()
    # Rows of the joined call: the first image's negative prompt, its prompt, the second image's prompt.
    torch.testing.assert_close(found, kept[-1][1:].mean((2, 3)))


def test_backbones_of_one_pipeline_share_one_feature_hook(tiny):
    first, second = tiny("sd15").wrap(), tiny("sd15").wrap()
    assert first.network.hook is second.network.hook
    hooks = first.denoiser.mid_block._forward_hooks.values()
    assert sum(isinstance(hook, FeatureHook) for hook in hooks) == 1


@pytest.mark.slow
def test_a_compiled_denoiser_gives_them_too(tiny):
    backbone = tiny("sd15").wrap()
    plain = evaluation(backbone, 2).features
    form = torch.compile(backbone.denoiser, backend="eager")
    backbone.evaluator.networks.compiled = {id(backbone.denoiser): form}
    torch.testing.assert_close(evaluation(backbone, 2).features, plain)


def test_a_block_that_did_not_run_gives_none():
    made = hook(nn.Conv2d(3, 5, 1))
    assert made.take(2) is None


def test_rows_and_images_in_parts_equal_those_of_one_call(emoji, monkeypatch):
    """On a CPU large batches of the emoji world are denoised and decoded a part at a time."""
    whole = evaluation(emoji, 3)
    pixels, preview = emoji.decode(whole.x0), emoji.preview(whole.x0)
    calls = []
    handle = emoji.denoiser.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    monkeypatch.setattr(stable_diffusion, "ROWS_ON_CPU", 2)
    monkeypatch.setattr(stable_diffusion, "DECODE_PIXELS", 64 * 64)
    try:
        parts = evaluation(emoji, 3)
    finally:
        handle.remove()
    assert calls == [2, 2, 1]  # three lanes, two of them guided
    torch.testing.assert_close(parts.x0, whole.x0, rtol=0, atol=1e-3)  # at sigma 14.6, times the guidance scale
    torch.testing.assert_close(parts.features, whole.features, rtol=0, atol=1e-5)
    assert parts.calls.tolist() == whole.calls.tolist() == [2, 1, 2]
    torch.testing.assert_close(emoji.decode(whole.x0), pixels, rtol=0, atol=1e-4)
    torch.testing.assert_close(emoji.preview(whole.x0), preview, rtol=0, atol=1e-4)

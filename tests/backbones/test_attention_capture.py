"""Attention capture: correct values, unchanged outputs, and the model's own processors restored."""

from __future__ import annotations

import pytest
import torch
from zoo import ZOO

from addiffusion_env.backbones.attention import AttentionStore, captured_attention, joint_attention
from addiffusion_env.backbones.calls.denoiser_hooks import attention_grid
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.errors import CapabilityError

SLOW = pytest.mark.slow  # one UNet and one transformer run in `make test`; the backbone is the same for all
NAMES = ("sd15", pytest.param("sd21", marks=SLOW), pytest.param("sdxl", marks=SLOW), "flux")
TEXTS = ["a red cup on the sofa", "a dog", "the cat"]


def inputs(backbone, rows=3):
    shape = (rows, *backbone.capabilities.latent_shape)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.9, 0.5, 0.3], dtype=torch.float64)[:rows]
    scale = torch.full((rows,), backbone.capabilities.default_guidance, dtype=torch.float64)
    return x, sigma, backbone.encode(TEXTS[:rows]), scale


@pytest.fixture(params=NAMES)
def backbone(request, tiny):
    return tiny(request.param).wrap()


def test_the_prediction_does_not_change(backbone):
    given = inputs(backbone)
    plain = backbone.predict(*given)
    observed = backbone.predict(*given, torch.tensor([True, False, True]))
    assert torch.equal(plain.x0, observed.x0)
    assert plain.attention is None


def hooks_of(module):
    return [hook for layer in module.modules() for hook in layer._forward_pre_hooks.values()]


def test_no_hooks_stay_and_the_processors_are_the_very_same_objects(backbone):
    before, hooks = backbone.denoiser.attn_processors, hooks_of(backbone.denoiser)
    backbone.predict(*inputs(backbone), torch.tensor([True, True, True]))
    after = backbone.denoiser.attn_processors
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert hooks_of(backbone.denoiser) == hooks


def test_also_after_an_exception(backbone):
    before = hooks_of(backbone.denoiser)
    store = AttentionStore(torch.tensor([0]), (4, 4))

    def interrupted():
        with captured_attention(backbone.denoiser, store):
            assert len(hooks_of(backbone.denoiser)) > len(before)
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        interrupted()
    assert hooks_of(backbone.denoiser) == before


def test_layers_compiled_in_place_are_captured_too(tiny):
    """Compiled code does not call hooks that were added after it was compiled."""
    backbone = tiny("sd15").wrap()
    given = inputs(backbone)
    expected = backbone.predict(*given, torch.tensor([True, True, True]))
    try:
        backbone.denoiser.compile(backend="eager")
        plain = backbone.predict(*given)  # compiled here
        observed = backbone.predict(*given, torch.tensor([True, True, True]))
    finally:
        backbone.denoiser._compiled_call_impl = None
        torch._dynamo.reset()
    torch.testing.assert_close(observed.attention, expected.attention)
    torch.testing.assert_close(observed.x0, plain.x0)


def test_a_users_own_processor_keeps_working(tiny):
    from diffusers.models.attention_processor import AttnProcessor

    backbone = tiny("sd15").wrap()
    default = dict(backbone.denoiser.attn_processors)
    given = inputs(backbone)
    expected = backbone.predict(*given).x0
    own = {name: AttnProcessor() for name in default}
    try:
        backbone.denoiser.set_attn_processor(dict(own))
        observed = backbone.predict(*given, torch.tensor([True, True, True]))
        assert all(own[name] is value for name, value in backbone.denoiser.attn_processors.items())
    finally:
        backbone.denoiser.set_attn_processor(default)
    torch.testing.assert_close(observed.x0, expected, atol=1e-4, rtol=1e-4)


def test_shares_sum_to_one_over_the_tokens(backbone):
    maps = backbone.predict(*inputs(backbone), torch.tensor([True, False, True])).attention
    height, width = backbone.capabilities.attention_grid
    assert maps.shape == (3, backbone.capabilities.max_tokens, height, width)
    assert not maps[1].any()  # the row without capture
    total = maps[[0, 2]].sum(1)
    if backbone.name == "flux":  # the rest of a cell's attention goes to other cells
        assert 0 < float(total.min()) <= float(total.max()) < 1
    else:
        torch.testing.assert_close(total, torch.ones_like(total))
    assert float(maps.min()) >= 0


def test_a_row_does_not_depend_on_its_neighbours(backbone):
    together = backbone.predict(*inputs(backbone), torch.tensor([True, True, True])).attention
    x, sigma, conditioning, scale = inputs(backbone)
    for row in range(3):
        at = slice(row, row + 1)
        alone = backbone.predict(x[at], sigma[at], conditioning.row(row), scale[at], torch.tensor([True])).attention
        torch.testing.assert_close(together[at], alone, atol=1e-5, rtol=1e-4)


def test_cross_attention_is_what_the_layers_compute(tiny):
    """Compared with the softmax weights of diffusers' own slow path."""
    backbone = tiny("sd15").wrap()
    seen = []

    def remember(module, args, kwargs):
        seen.append((module, args, kwargs))

    layers = [module for name, module in backbone.denoiser.named_modules() if name.endswith("attn2")]
    hooks = [layer.register_forward_pre_hook(remember, with_kwargs=True) for layer in layers]
    given = inputs(backbone, rows=1)
    try:
        maps = backbone.predict(*given, torch.tensor([True])).attention
    finally:
        for hook in hooks:
            hook.remove()
    expected = []
    for attn, args, kwargs in seen[-len(layers) :]:  # others open the pipeline's call; the negative prompt is row 0
        image, text = args[0][1:], kwargs["encoder_hidden_states"][1:]
        if image.shape[1] == 16:
            query, key = attn.head_to_batch_dim(attn.to_q(image)), attn.head_to_batch_dim(attn.to_k(text))
            expected.append(attn.get_attention_scores(query, key).mean(0).T.reshape(-1, 4, 4))
    torch.testing.assert_close(maps[0], torch.stack(expected).mean(0), atol=1e-6, rtol=1e-5)


def test_joint_attention_is_what_the_layers_compute(tiny, monkeypatch):
    """Compared with the softmax weights of the queries and keys of the layer's own processor."""
    from diffusers.models.transformers import transformer_flux

    attn = tiny("flux").wrap().denoiser.transformer_blocks[0].attn
    image, text, angles = torch.randn(2, 16, 32), torch.randn(2, 24, 32), torch.randn(24 + 16, 16)
    rotary = (angles.cos(), angles.sin())
    weights = []

    def watched(query, key, value, **kwargs):
        scores = query.transpose(1, 2) @ key.transpose(1, 2).mT * query.shape[-1] ** -0.5
        weights.append(torch.softmax(scores, dim=-1))
        return value

    monkeypatch.setattr(transformer_flux, "dispatch_attention_fn", watched)
    attn(hidden_states=image, encoder_hidden_states=text, image_rotary_emb=rotary)
    expected = weights[0].mean(1)[:, 24:, :24]  # text comes first, in queries and keys
    torch.testing.assert_close(joint_attention(attn, image, text, rotary), expected, atol=1e-6, rtol=1e-5)


def test_the_grid_of_latents_with_odd_sides_is_that_of_the_layers(tiny):
    """1048 pixels are 131 latents: a UNet's levels round up."""
    unet = tiny("sd15").pipe.unet
    store = AttentionStore(torch.tensor([0]), attention_grid(unet, (4, 13, 8)))
    text = torch.randn(1, 24, unet.config.cross_attention_dim)
    with torch.no_grad(), captured_attention(unet, store):
        unet(torch.randn(1, 4, 13, 8), 1, encoder_hidden_states=text)
    assert store.mean().shape == (1, 24, 7, 4)


def test_a_grid_that_no_layer_has_is_refused(tiny):
    backbone = tiny("sd15").wrap()
    store = AttentionStore(torch.tensor([0]), (5, 5))
    with captured_attention(backbone.denoiser, store):
        backbone.predict(*inputs(backbone))
    with pytest.raises(CapabilityError, match="5x5"):
        store.mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepfloyd_if", "flux_kontext"])
def test_attention_that_cannot_be_read_is_measured(name):
    """A UNet without cross-attention of the expected kind, and a transformer that also reads another image's tokens."""
    builder = ZOO[name]
    given = {key: value for key, value in builder.arguments("a cup").items() if key not in ("prompt", "output_type")}
    can = PipelineBackbone(builder(), given, preview="none").capabilities
    assert can.attention_grid is None and can.feature_dim


@pytest.mark.slow
def test_content_of_a_prompt_at_the_end_of_the_window():
    """Kolors pads on the left, to its own length."""
    builder = ZOO["kolors"]
    given = {key: value for key, value in builder.arguments("a cup").items() if key not in ("prompt", "output_type")}
    backbone = PipelineBackbone(builder(), given, preview="none")
    conditioning = backbone.encode(["a photo of a red cup"])
    x, one = torch.randn(1, *backbone.capabilities.latent_shape), torch.ones(1, dtype=torch.float64)
    maps = backbone.predict(x, one, conditioning, 3 * one, capture=torch.ones(1, dtype=torch.bool)).attention
    positions = conditioning.content[0]
    assert len(positions) >= 3 and max(positions) == maps.shape[1] - 1

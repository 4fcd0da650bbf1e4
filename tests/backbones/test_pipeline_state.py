"""Denoisers that keep state between calls, and autoencoders that return NaN or infinity."""

from __future__ import annotations

import functools
from dataclasses import replace

import diffusers
import pytest
import torch
from zoo import ZOO
from zoo.compare import (
    OTHER,
    PROMPT,
    ROUNDING,
    adaptive_image,
    check_same,
    difference,
    own_image,
    two_lines,
    wrapped,
)

from addiffusion_env.engine.coroutines import advance, finished
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import FaultCount, open_lane, restore_lane
from addiffusion_env.errors import CapabilityError, NumericsError
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers.image_scores import NoScorers

GUIDED = {"num_inference_steps": 4, "height": 16, "width": 16, "guidance_scale": 3.0}
FLUX = {"num_inference_steps": 4, "height": 16, "width": 16, "max_sequence_length": 32}

# State of a lane.


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sd15", "EulerAncestralDiscreteScheduler"),
        ("sd15", "DPMSolverMultistepScheduler"),
        ("sd15_inpaint", None),
        pytest.param("flux_inpaint", None, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("steps", [4, 7])
def test_a_saved_lane_continues_as_it_would_have(name, kind, steps):
    """In another process: with its own number of steps, not the pipeline's, and its own noise."""

    def made():
        builder = ZOO[name]
        given = {key: value for key, value in builder.arguments(PROMPT).items() if key not in ("prompt", "output_type")}
        pipe = builder()
        if kind is not None:
            pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
        adaptive = wrapped(pipe, {**given, "num_inference_steps": 4})
        engine = Engine(adaptive.backbone, NoScorers(), solver="scheduler")
        return adaptive.backbone, replace(adaptive.process, steps=steps), engine

    def first(backbone, process):
        lane = open_lane(backbone, process, Prompt.of(PROMPT), 7)
        return (yield from advance(process, lane))

    def rest(process, lane):
        while lane.remaining:
            lane = yield from advance(process, lane)
        return (yield from finished(lane)).tensor

    backbone, process, engine = made()
    lane = engine.run([first(backbone, process)])[0]
    state = lane.state()
    whole = engine.run([rest(process, lane)])[0]
    backbone, process, engine = made()
    resumed = engine.run([rest(process, restore_lane(backbone, state))])[0]
    torch.testing.assert_close(resumed, whole, atol=1e-5, rtol=1e-5)


# State between calls.


def cache_configs():
    from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

    return {
        "mag": diffusers.MagCacheConfig(mag_ratios=FLUX_MAG_RATIOS, threshold=0.5),
        "pab": diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=4, current_timestep_callback=lambda: 500
        ),
        "first block": diffusers.FirstBlockCacheConfig(threshold=0.1),
    }


@pytest.mark.parametrize("name", ["mag", "pab", "first block"])
@pytest.mark.parametrize("how", ["enabled", "hooked", pytest.param("enabled later", marks=pytest.mark.slow)])
def test_a_cache_on_the_denoiser_is_refused(name, how):
    from diffusers import hooks

    pipe, config = ZOO["flux"](), cache_configs()[name]
    adaptive = wrapped(pipe, FLUX) if how == "enabled later" else None
    if how == "hooked":
        apply = {
            "mag": hooks.apply_mag_cache,
            "pab": hooks.apply_pyramid_attention_broadcast,
            "first block": hooks.apply_first_block_cache,
        }
        apply[name](pipe.transformer, config)
    else:
        pipe.transformer.enable_cache(config)
    with pytest.raises(CapabilityError, match="transformer has a cache") as error:
        wrapped(pipe, FLUX) if adaptive is None else adaptive(PROMPT)
    two_lines(error.value)
    if adaptive is not None:
        pipe.transformer.disable_cache()
        check_same(pipe, FLUX, adaptive)


PAG = [
    "pag_sd15",
    *(pytest.param(f"pag_{name}", marks=pytest.mark.slow) for name in ("sdxl", "sd3", "pixart_sigma", "sana")),
]


@pytest.mark.parametrize("name", PAG)
def test_attention_processors_belong_to_the_call_that_sets_them(name):
    """Perturbed-attention guidance sets other processors with classifier-free guidance than without."""
    builder = ZOO[name]
    given = {key: value for key, value in builder.arguments(PROMPT).items() if key not in ("prompt", "output_type")}
    pipe = builder()
    network = getattr(pipe, *builder.denoisers)
    processors = network.attn_processors
    without = own_image(pipe, {**given, "pag_scale": 0.0})
    adaptive = wrapped(pipe, given)
    assert network.attn_processors == processors
    assert torch.equal(own_image(pipe, {**given, "pag_scale": 0.0}), without)
    made = adaptive_image(adaptive, pag_scale=0.0)
    assert difference(made, without) <= ROUNDING < difference(made, own_image(pipe, given))
    backbone, texts = adaptive.backbone, (PROMPT, OTHER, "a cat")
    _, latents, levels = backbone.begin([(Prompt.of(text), 0) for text in texts], 3, "scheduler")
    sigma, scales = torch.as_tensor([own[0] for own in levels]), torch.tensor([1.0, 3.0, 3.0])
    together = backbone.predict(latents.x, sigma, backbone.encode(texts), scales).x0
    for row, text in enumerate(texts):
        own = slice(row, row + 1)
        alone = backbone.predict(latents.x[own], sigma[own], backbone.encode([text]), scales[own]).x0
        torch.testing.assert_close(together[own], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("inside", [False, True])
def test_a_patched_forward_is_refused(inside):
    pipe = ZOO["sd15"]()
    module = pipe.unet.down_blocks[0] if inside else pipe.unet
    module.forward = functools.partial(module.forward)
    with pytest.raises(CapabilityError, match=r"forward method of unet.* has been replaced") as error:
        wrapped(pipe, GUIDED)
    two_lines(error.value)


def test_hooks_without_state_are_followed():
    """Layerwise casting and group offloading also replace methods."""
    pipe = ZOO["sd15"]()
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    pipe.vae.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    check_same(pipe, GUIDED)


def test_offloading_that_was_switched_off():
    """accelerate puts a module's own forward method back, as an attribute of the module."""
    pytest.importorskip("accelerate")
    pipe = ZOO["sd15"]()
    pipe.enable_model_cpu_offload(device="cpu")
    adaptive = wrapped(pipe, GUIDED)
    check_same(pipe, GUIDED, adaptive)
    pipe.remove_all_hooks()
    check_same(pipe, GUIDED, adaptive)


@pytest.mark.slow
def test_a_forward_method_that_the_user_has_compiled():
    pipe = ZOO["sd15"]()
    pipe.unet.forward = torch.compile(pipe.unet.forward, backend="eager")
    check_same(pipe, GUIDED)


def test_a_scheduler_that_was_taken_away_is_named():
    adaptive = wrapped(ZOO["sd15"](), GUIDED)
    adaptive.backbone.pipe.scheduler = None
    with pytest.raises(CapabilityError, match=r"pipe.scheduler of the StableDiffusionPipeline is None") as error:
        adaptive("a dog")
    two_lines(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_a_network_that_the_user_has_compiled(whole):
    pipe = ZOO["sd15"]()
    if whole:
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    else:
        pipe.unet.down_blocks[0] = torch.compile(pipe.unet.down_blocks[0], backend="eager")
    check_same(pipe, GUIDED)


# Numerics.


class Spoiled(torch.nn.Module):
    """A decoder's last layer that corrupts the images that satisfy a condition."""

    def __init__(self, layer, value, spoils):
        super().__init__()
        self.layer, self.value, self.spoils = layer, value, spoils

    def forward(self, x):
        made = self.layer(x)
        bad = torch.tensor([self.spoils(row) for row in x])
        return torch.where(bad[:, None, None, None], torch.full_like(made, self.value), made)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_autoencoder_without_finite_images_is_named(value):
    pipe = ZOO["sd15"]()
    pipe.vae.decoder.conv_out = Spoiled(pipe.vae.decoder.conv_out, value, lambda row: True)
    with pytest.raises(NumericsError, match=r"AutoencoderKL.*float32.*NaN or infinity") as error:
        wrapped(pipe, GUIDED)(PROMPT)
    two_lines(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_costs_one_lane(value):
    pipe = ZOO["sd15"]()
    adaptive = wrapped(pipe, GUIDED)
    inputs = []
    pipe.vae.decoder.conv_out.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    texts = [PROMPT, OTHER, "a cat"]
    wanted = adaptive(texts, output_type="pt").images
    bad = torch.cat(inputs)[1]
    layer = pipe.vae.decoder.conv_out
    layer._forward_pre_hooks.clear()
    pipe.vae.decoder.conv_out = Spoiled(layer, value, lambda row: bool((row - bad).abs().max() < 1e-4))
    backbone = adaptive.backbone
    engine = Engine(backbone, NoScorers(), solver="scheduler", decider=adaptive.sampler.decide, faults=FaultCount(1))
    coroutines = [adaptive.sampler.coroutine(backbone, adaptive.process, Prompt.of(text), 0) for text in texts]
    with pytest.warns(UserWarning, match="image dropped"):
        first, second, third = (found for _, found in sorted(engine.stream(coroutines, 3, 3)))
    assert isinstance(second.error, NumericsError) and "float32" in two_lines(second.error)
    for episode, image in ((first, wanted[0]), (third, wanted[2])):
        assert difference(episode.image.tensor / 2 + 0.5, image) <= ROUNDING


def test_a_pipeline_that_was_left_alone_is_measured_once():
    adaptive = wrapped(ZOO["flux"](), FLUX)
    measured = adaptive.backbone.measured
    adaptive(PROMPT)
    adaptive.backbone.refresh()
    assert adaptive.backbone.measured is measured

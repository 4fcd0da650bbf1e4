"""LoRA, ControlNet, image tasks, quantised networks and guiders: each image equals that of the pipeline."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from zoo import ZOO
from zoo.compare import OTHER, PROMPT, ROUNDING, adaptive_image, check_same, difference, own_image, two_lines, wrapped

from addiffusion_env import AdaptivePipeline
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.errors import ConfigError
from addiffusion_env.prompts import Prompt
from addiffusion_lab.tiny_pipelines.tasks import image

pytestmark = pytest.mark.slow

SD = {"num_inference_steps": 4, "height": 16, "width": 16, "guidance_scale": 3.0}
FLUX = {"num_inference_steps": 4, "height": 16, "width": 16, "max_sequence_length": 32}


def settings(name, **changes):
    given = ZOO[name].arguments(PROMPT, **changes)
    return {key: value for key, value in given.items() if key not in ("prompt", "output_type")}


def add_lora(network, name="style", seed=0, targets=("to_q", "to_k", "to_v"), strength=0.5):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=list(targets), init_lora_weights=False)
    if hasattr(network, "set_attn_processor"):
        network.add_adapter(config, name)
    else:
        peft.inject_adapter_in_model(config, network, name)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in network.named_parameters():
        if "lora_" in key and name in key:
            parameter.data.normal_(std=strength, generator=generator)
    network.requires_grad_(False)


def with_lora(name="sd15"):
    pipe = ZOO[name]()
    add_lora(pipe.unet if hasattr(pipe, "unet") else pipe.transformer)
    return pipe


def check_two(adaptive, pipe, given, per_prompt=({}, {}), **call):
    """Two prompts at once, each image equal to that of the pipeline."""
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    made = adaptive([PROMPT, OTHER], generator=generators, output_type="pt", **call).images
    wanted = [
        own_image(pipe, {**given, **own}, text, seed)
        for text, seed, own in zip((PROMPT, OTHER), (0, 1), per_prompt, strict=True)
    ]
    for drawn, own in zip(made, wanted, strict=True):
        assert difference(drawn, own) <= ROUNDING
    return wanted


# LoRA.


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_a_lora_for_all_images_is_joined(name):
    pipe = with_lora(name)
    given = SD if name == "sd15" else FLUX
    adaptive = wrapped(pipe, given)
    calls = adaptive.backbone.evaluator.networks.network_calls
    calls.clear()
    wanted = check_two(adaptive, pipe, given)
    assert sum(calls.values()) == 4  # two images, four steps
    assert difference(wanted[0], own_image(ZOO[name](), given)) > 0.005


def test_a_lora_scale_of_each_image():
    pipe = with_lora()
    adaptive = wrapped(pipe, SD)
    scales = [{"scale": 0.3}, {"scale": 1.5}]
    own = [{"cross_attention_kwargs": scale} for scale in scales]
    wanted = check_two(adaptive, pipe, SD, own, cross_attention_kwargs=scales)
    assert difference(wanted[0], own_image(pipe, SD)) > 0.005
    check_two(adaptive, pipe, SD, [own[0]] * 2, cross_attention_kwargs=scales[0])
    check_two(adaptive, pipe, SD)  # nothing of it stays


@pytest.mark.parametrize("where", ["wrapped", "called"])
def test_a_lora_scale_of_zero_is_refused(where):
    pipe, zero = with_lora(), {"cross_attention_kwargs": {"scale": 0}}
    adaptive = None if where == "wrapped" else wrapped(pipe, SD)
    with pytest.raises(ConfigError, match="scale=0 in cross_attention_kwargs") as error:
        wrapped(pipe, {**SD, **zero}) if adaptive is None else adaptive([PROMPT, OTHER], **zero)
    two_lines(error.value)


def weaker(pipe):
    pipe.unet.set_adapters(["style"], [0.2])


def disabled(pipe):
    pipe.unet.disable_adapters()


def another(pipe):
    add_lora(pipe.unet, "other", seed=1)


def fused(pipe):
    pipe.unet.fuse_lora(adapter_names=["style"])


def deleted(pipe):
    pipe.unet.delete_adapters(["style"])


def text_half(pipe):
    add_lora(pipe.text_encoder, targets=("q_proj", "k_proj", "v_proj"))


CHANGES = [weaker, disabled, another, fused, deleted, text_half]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_adapters_that_change_between_calls_are_followed(change):
    pipe = with_lora()
    adaptive = wrapped(pipe, SD)
    before = adaptive_image(adaptive)
    change(pipe)
    wanted = check_same(pipe, SD, adaptive)
    if change is not fused:
        assert difference(before, wanted) > 0.005


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_adapters_that_change_under_way_are_refused(change):
    pipe = with_lora()
    adaptive = wrapped(pipe, SD)

    def after_step(_, step, time, values):
        if step == 1:
            change(pipe)
        return values

    with pytest.raises(ConfigError, match="while an image was being generated") as error:
        adaptive(PROMPT, callback_on_step_end=after_step)
    two_lines(error.value)
    check_same(pipe, SD, adaptive)  # the next image is not affected


def test_the_text_half_of_a_lora_is_followed():
    pipe = ZOO["sd15"]()
    add_lora(pipe.text_encoder, targets=("q_proj", "k_proj", "v_proj"))
    adaptive = wrapped(pipe, SD)
    before = check_same(pipe, SD, adaptive)
    for layer in pipe.text_encoder.modules():
        if isinstance(getattr(layer, "scaling", None), dict):
            layer.set_scale("style", 0.1)
    assert difference(before, check_same(pipe, SD, adaptive)) > 0.002


# IP-Adapter.


def test_an_image_prompt_of_each_image():
    pipe, given = ZOO["sd15_ip_adapter"](), settings("sd15_ip_adapter")
    adaptive = wrapped(pipe, given)
    images = [image(seed) for seed in (1, 2)]
    wanted = check_two(adaptive, pipe, given, [{"ip_adapter_image": one} for one in images], ip_adapter_image=images)
    assert difference(wanted[0], own_image(pipe, given)) > 0.003
    embeds = pipe.prepare_ip_adapter_image_embeds(images[0], None, "cpu", 1, True)
    plain = {key: value for key, value in given.items() if key != "ip_adapter_image"}
    own = {**plain, "ip_adapter_image_embeds": embeds}
    check_two(wrapped(pipe, own), pipe, own)
    assert difference(own_image(pipe, own), wanted[0]) <= ROUNDING


def test_attention_is_read_without_changing_masked_image_prompts():
    """The layers' text is a tuple there, and diffusers drops arguments that a processor does not name."""
    pipe, given = ZOO["sd15_ip_adapter"](), settings("sd15_ip_adapter")
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    backbone = PipelineBackbone(pipe, {**given, "cross_attention_kwargs": {"ip_adapter_masks": [mask]}})
    unmasked = PipelineBackbone(pipe, given)

    def prediction(backbone, capture=None):
        x = torch.randn((1, *backbone.capabilities.latent_shape), generator=torch.Generator().manual_seed(0))
        level = torch.tensor([1.0], dtype=torch.float64)
        return backbone.predict(x, level, backbone.encode([PROMPT]), torch.tensor([3.0]), capture)

    plain, captured = prediction(backbone), prediction(backbone, torch.tensor([True]))
    assert torch.equal(plain.x0, captured.x0)
    assert not torch.allclose(plain.x0, prediction(unmasked).x0, atol=1e-4)
    torch.testing.assert_close(captured.attention.sum(1), torch.ones_like(captured.attention[:, 0]))


# ControlNet.


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.25, 1.0), (0.0, 0.5), (0.25, 0.75)])
def test_a_controlnet_acts_in_its_window(window):
    pipe = ZOO["sd15_controlnet"]()
    start, end = window
    given = settings("sd15_controlnet", num_inference_steps=4, control_guidance_start=start, control_guidance_end=end)
    adaptive = wrapped(pipe, given)
    wanted = check_two(adaptive, pipe, given)
    if window != (0.0, 1.0):
        always = {**given, "control_guidance_start": 0.0, "control_guidance_end": 1.0}
        assert difference(wanted[0], own_image(pipe, always)) > 1e-4


# Image-to-image and inpainting.


@pytest.mark.parametrize("name", ["sd15_inpaint", pytest.param("flux_inpaint", marks=pytest.mark.slow)])
def test_an_early_exit_of_inpainting_keeps_what_is_not_masked(name):
    pipe, given = ZOO[name](), settings(name, strength=1.0, num_inference_steps=4)
    adaptive = wrapped(pipe, given)
    check_same(pipe, given, adaptive)
    process = replace(adaptive.process, early_exit_steps=0)
    stopped = AdaptivePipeline(adaptive.backbone, "stop:2", process=process)
    decoded = []
    pipe.vae.decoder.register_forward_pre_hook(lambda module, args: decoded.append(args[0]))
    whole, early = adaptive_image(adaptive), adaptive_image(stopped)
    masked, kept = (slice(None), slice(None), slice(None), slice(0, 4)), (slice(None),) * 3 + (slice(4, 8),)
    (first, second) = decoded
    torch.testing.assert_close(first[kept], second[kept], atol=1e-5, rtol=1e-5)
    assert (first[masked] - second[masked]).abs().max() > 0.05
    assert difference(whole[..., 12:], early[..., 12:]) < difference(whole[..., :4], early[..., :4])


@pytest.mark.parametrize("policy", ["stop:1", "stop:2", "fixed:3"])
def test_inpainting_at_levels_between_those_of_its_plan(policy):
    """Its scheduler looks the noise of the kept half up by whole timesteps."""
    pipe, given = ZOO["sd15_inpaint"](), settings("sd15_inpaint", strength=1.0, num_inference_steps=6)
    adaptive = wrapped(pipe, given)
    other = AdaptivePipeline(adaptive.backbone, policy)
    whole = adaptive([PROMPT, OTHER], seeds=0, output_type="pt").images
    early = other([PROMPT, OTHER], seeds=0, output_type="pt").images
    assert (whole[..., 12:] - early[..., 12:]).abs().max() < (whole[..., :4] - early[..., :4]).abs().max()


@pytest.mark.parametrize("name", ["sd15_inpaint", "flux_inpaint", "flux_fill", "flux_control"])
def test_every_call_of_an_image_encodes_and_blends_with_the_same_noise(name):
    """A call that is too far on is opened again: the image depends on its latents, not on what was evaluated before."""
    given = settings(name)
    backbone = wrapped(ZOO[name](), given).backbone
    steps = given["num_inference_steps"]
    images = [(Prompt.of(text), seed) for seed, text in enumerate((PROMPT, OTHER, "a cat"))]
    conditioning, latents, levels = backbone.begin(images, steps, "scheduler")
    scales = torch.tensor([3.0, 1.0, 3.0])
    for places in ((2, 0, 1), (1, 1, 0)):  # the first one's calls are too far on for the second
        sigma = torch.tensor([own[place] for own, place in zip(levels, places, strict=True)])
        together = backbone.predict(latents.x, sigma, conditioning, scales).x0
        for row, drawn in enumerate(images):
            own = slice(row, row + 1)
            begun, _, _ = backbone.begin([drawn], steps, "scheduler")
            alone = backbone.predict(latents.x[own], sigma[own], begun, scales[own]).x0
            torch.testing.assert_close(together[own], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["sd15_img2img", pytest.param("sdxl_img2img", marks=pytest.mark.slow), "sd15_inpaint"])
@pytest.mark.parametrize("where", ["wrapped", "called"])
def test_a_strength_that_leaves_no_step_is_refused(name, where):
    pipe, given = ZOO[name](), settings(name, num_inference_steps=4)
    adaptive = None if where == "wrapped" else wrapped(pipe, given)
    with pytest.raises(ConfigError, match=r"strength=0.1 of 4 steps leaves no step") as error:
        wrapped(pipe, {**given, "strength": 0.1}) if adaptive is None else adaptive(PROMPT, strength=0.1)
    two_lines(error.value)


def test_a_strength_of_the_call():
    pipe, given = ZOO["sd15_img2img"](), settings("sd15_img2img", num_inference_steps=4)
    adaptive = wrapped(pipe, given)
    for strength, steps in ((0.5, 2), (1.0, 4)):
        made = adaptive_image(adaptive, strength=strength)
        assert difference(made, own_image(pipe, {**given, "strength": strength})) <= ROUNDING
        assert adaptive(PROMPT, strength=strength).nfe.tolist() == [steps]


# Quantised networks.


def quantised(config):
    from torchao.quantization import quantize_

    pipe = ZOO["flux"]()
    quantize_(pipe.transformer, config)
    return pipe


def test_weights_of_eight_bits_are_joined():
    ao = pytest.importorskip("torchao.quantization")
    pipe = quantised(ao.Int8WeightOnlyConfig())
    adaptive = wrapped(pipe, FLUX)
    assert adaptive.backbone.evaluator.networks.joins
    wanted = check_two(adaptive, pipe, FLUX)
    assert difference(wanted[0], own_image(ZOO["flux"](), FLUX)) > 0


def test_activations_scaled_by_the_batch_are_not_joined():
    """One scale for all rows (granularity per tensor): an image would depend on the others in its batch."""
    ao = pytest.importorskip("torchao.quantization")
    pipe = quantised(ao.Int8DynamicActivationInt8WeightConfig(granularity=ao.PerTensor()))
    with pytest.warns(UserWarning, match="not joined: the network's output depends on the number of images"):
        adaptive = wrapped(pipe, FLUX)
    check_two(adaptive, pipe, FLUX)


# Guiders.


@pytest.mark.slow
def test_a_guider_is_each_images_own():
    """Adaptive projected guidance keeps a running average of its updates (arXiv:2410.02416)."""
    from diffusers.guiders import AdaptiveProjectedGuidance

    pipe, given = ZOO["hunyuan_image"](), settings("hunyuan_image", num_inference_steps=4)
    pipe.guider = AdaptiveProjectedGuidance(guidance_scale=4.0, adaptive_projected_guidance_momentum=-0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adaptive = wrapped(pipe, given)
    check_two(adaptive, pipe, given)

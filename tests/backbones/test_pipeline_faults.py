"""Variants of users' pipelines: each gives the pipeline's own image, or a two-line error."""

from __future__ import annotations

import diffusers
import pytest
import torch
from zoo import ZOO
from zoo.compare import OTHER, PROMPT, ROUNDING, adaptive_image, check_same, difference, own_image, two_lines, wrapped
from zoo.test_zoo import counted

from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.errors import CapabilityError
from addiffusion_lab.tiny_pipelines import parts as tiny
from addiffusion_lab.tiny_pipelines.stable_diffusion import sd15

pytestmark = pytest.mark.slow

SD = {"num_inference_steps": 4, "height": 16, "width": 16}
GUIDED = {**SD, "guidance_scale": 3.0}
FLUX = {**SD, "max_sequence_length": 32}


def normal(*shape, seed=5):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Text encoders.


def with_vectors(pipe, count):
    pipe.load_textual_inversion({"<mug>": 3 * normal(count, 16)}, token="<mug>")
    return pipe


def test_textual_inversion_of_several_vectors():
    pipe = ZOO["sd15"]()
    text = "a photo of <mug> on the sofa"
    with_vectors(pipe, 3)
    assert pipe.maybe_convert_prompt(text, pipe.tokenizer) == "a photo of <mug> <mug>_1 <mug>_2 on the sofa"
    several = check_same(pipe, GUIDED, text=text)
    assert difference(several, own_image(with_vectors(ZOO["sd15"](), 1), GUIDED, text)) > 0.005
    words = [PipelineBackbone(with_vectors(ZOO["sd15"](), count)).encode([text]).content[0] for count in (1, 3)]
    assert len(words[1]) == len(words[0]) + 2  # attention maps are read at each vector


def load_vector(pipe):
    with_vectors(pipe, 1)


def scale_in_place(pipe):
    with torch.no_grad():
        for parameter in pipe.text_encoder.parameters():
            parameter.mul_(1.3)


def scale_by_data(pipe):
    for parameter in pipe.text_encoder.parameters():
        parameter.data.mul_(1.3)


def load_weights(pipe):
    torch.manual_seed(9)
    pipe.text_encoder.load_state_dict(tiny.clip_text_model(pipe.tokenizer).state_dict())


def other_encoder(pipe):
    torch.manual_seed(9)
    pipe.text_encoder = tiny.clip_text_model(pipe.tokenizer).eval()


CHANGES = [
    load_vector,
    scale_in_place,
    scale_by_data,
    pytest.param(load_weights, marks=pytest.mark.slow),
    pytest.param(other_encoder, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: getattr(change, "__name__", None))
def test_encodings_follow_their_encoder(change):
    pipe = ZOO["sd15"]()
    text = "a photo of <mug> on the sofa"
    adaptive = wrapped(pipe, GUIDED)
    before = adaptive_image(adaptive, text)
    change(pipe)
    wanted = check_same(pipe, GUIDED, adaptive, text)
    assert difference(before, wanted) > 0.005


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_encodings_under_autocast_stay_there(name):
    """In bfloat16 they differ, and SD 3's networks refuse those of another precision than their own."""
    builder, text = ZOO[name], "a photo of the cat"
    given = {key: value for key, value in builder.arguments(PROMPT).items() if key not in ("prompt", "output_type")}
    pipe = builder()
    adaptive = wrapped(pipe, given)
    encode = adaptive.backbone.evaluator.texts.overrides()["encode_prompt"]
    more = {key: text for key in ("prompt_2", "prompt_3") if name == "sd3"}
    settings = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encode(prompt=text, **more, **settings)
        adaptive_image(adaptive, text)
    for made, own in zip(
        encode(prompt=text, **more, **settings), pipe.encode_prompt(text, **more, **settings), strict=True
    ):
        assert torch.equal(made, own)
    assert not torch.equal(half[0], pipe.encode_prompt(text, **more, **settings)[0])
    check_same(pipe, given, adaptive, text)


# Guidance.


QUICK = {("sd15", 0.0), ("sd15", 0.5), ("sd15", 1.0), ("z_image", 0.0), ("z_image", 1.0), ("krea2", 0.0)}
SCALES = [
    pytest.param(name, scale, marks=() if (name, scale) in QUICK else pytest.mark.slow)
    for name in ("sd15", "sdxl", "sd3", "z_image", "krea2", "flux2_klein")
    for scale in (0.0, 0.5, 1.0, 4.0)
]


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_guidance_scale_means_what_the_pipeline_means(name, scale):
    builder = ZOO[name]
    given = {key: value for key, value in builder.arguments(PROMPT).items() if key not in ("prompt", "output_type")}
    pipe = builder()
    given = {**given, "guidance_scale": scale}
    effect = 0.0005 if name == "krea2" else 0.005
    check_same(pipe, given, effect=effect)
    adaptive = wrapped(pipe, {**given, "guidance_scale": 2.0})
    networks = {getattr(pipe, part) for part in builder.denoisers}
    with counted(networks) as rows:
        made = adaptive_image(adaptive, guidance_scale=scale)
    with counted(networks) as own_rows:
        wanted = own_image(pipe, given)
    assert difference(made, wanted) <= ROUNDING
    assert sum(rows) == sum(own_rows)


# Autoencoders.


def test_latents_mean_and_std_of_the_autoencoder():
    pipe = ZOO["sdxl"]()
    plain = own_image(pipe, GUIDED)
    pipe.vae.register_to_config(
        latents_mean=[-1.6, 1.1, 3.2, -3.5], latents_std=[8.4, 5.9, 4.5, 5.3], scaling_factor=0.5
    )
    assert difference(plain, check_same(pipe, GUIDED)) > 0.005


# UNets.


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_unet_that_takes_the_guidance_scale(name):
    pipe = ZOO[name]()
    settings = {key: value for key, value in pipe.unet.config.items() if not key.startswith("_")}
    torch.manual_seed(0)
    pipe.unet = diffusers.UNet2DConditionModel(**{**settings, "time_cond_proj_dim": 32}).eval().requires_grad_(False)
    torch.nn.init.normal_(pipe.unet.time_embedding.cond_proj.weight)
    adaptive = wrapped(pipe, GUIDED)
    wanted = check_same(pipe, GUIDED, adaptive)
    assert difference(wanted, own_image(pipe, {**GUIDED, "guidance_scale": 9.0})) > 1e-4
    with counted({pipe.unet}) as rows:
        assert adaptive(PROMPT).nfe.tolist() == [4]
    assert rows == [1, 1, 1, 1]  # guidance is an input, not a second branch
    given = adaptive_image(adaptive, guidance_scale=9.0)
    assert difference(given, own_image(pipe, {**GUIDED, "guidance_scale": 9.0})) <= ROUNDING


@pytest.mark.parametrize("size", [8, [8, 12], (12, 8)])
def test_sample_sizes(size):
    """The default image size is that of the pipeline."""
    pipe = sd15(unet={"sample_size": size})
    pipe.set_progress_bar_config(disable=True)
    wanted = check_same(pipe, {"num_inference_steps": 3}, effect=0.0005)
    assert wanted.shape[1:] == ((16, 16) if size == 8 else tuple(2 * side for side in size))


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_a_sample_size_of_none(name):
    pipe = ZOO[name]()
    network = pipe.unet if name == "sd15" else pipe.transformer
    network.register_to_config(sample_size=None)
    check_same(pipe, GUIDED if name == "sd15" else FLUX)
    if name == "sd15":
        with pytest.raises(CapabilityError, match="failed: TypeError: unsupported operand") as error:
            wrapped(pipe, {"num_inference_steps": 3})
        assert "height" in two_lines(error.value)


# Components replaced or moved after wrapping.


def replace_scheduler(pipe):
    settings = {**pipe.scheduler.config, "use_karras_sigmas": True}
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(settings)


def replace_unet(pipe):
    torch.manual_seed(11)
    pipe.unet = tiny.unet().eval().requires_grad_(False)


def replace_vae(pipe):
    torch.manual_seed(11)
    pipe.vae = tiny.autoencoder().eval().requires_grad_(False)


def change_unet_in_place(pipe):
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(1.5)


def register_scheduler_setting(pipe):
    pipe.scheduler.register_to_config(timestep_spacing="trailing")


REPLACED = [
    replace_scheduler,
    replace_unet,
    pytest.param(replace_vae, marks=pytest.mark.slow),
    pytest.param(change_unet_in_place, marks=pytest.mark.slow),
    pytest.param(register_scheduler_setting, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("change", REPLACED, ids=lambda change: getattr(change, "__name__", None))
def test_parts_replaced_after_wrapping_are_seen(change):
    pipe = ZOO["sd15"]()
    adaptive = wrapped(pipe, GUIDED)
    before = adaptive_image(adaptive)
    change(pipe)
    assert difference(before, check_same(pipe, GUIDED, adaptive)) > 0.005


def test_pipe_to_another_precision_is_seen():
    pipe = ZOO["sd15"]()
    adaptive = wrapped(pipe, GUIDED)
    before = adaptive_image(adaptive)
    pipe.to(torch.bfloat16)
    wanted = own_image(pipe, GUIDED)
    made = adaptive_image(adaptive)
    assert adaptive.backbone.measured.dtype == torch.bfloat16
    assert difference(made, wanted) <= 0.02 and difference(before, wanted) > difference(made, wanted)


# User-defined classes.


class Shouting(diffusers.StableDiffusionPipeline):
    """Encodes a modified prompt."""

    def encode_prompt(self, prompt, *args, **kwargs):
        loud = prompt if not isinstance(prompt, str) else f"{prompt} and a cat on the sofa"
        return super().encode_prompt(loud, *args, **kwargs)


def test_a_subclass_that_encodes_prompts_its_own_way():
    plain = ZOO["sd15"]()
    pipe = Shouting(**plain.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    wanted = check_same(pipe, GUIDED)
    assert difference(wanted, own_image(plain, GUIDED)) > 0.005


def test_attention_mask_of_the_text_encoder():
    pipe = ZOO["sd15"]()
    plain = own_image(pipe, GUIDED)
    pipe.text_encoder.config.use_attention_mask = True
    assert difference(plain, check_same(pipe, GUIDED)) > 0.005


# Features that only the pipeline implements.


def safety_checker(threshold):
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(4)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8)).eval()
    checker.concept_embeds.copy_(normal(17, 8))
    checker.concept_embeds_weights.fill_(threshold)
    checker.special_care_embeds_weights.fill_(2.0)
    size = {"height": 16, "width": 16}
    return checker, CLIPImageProcessor(size=size, crop_size=size)


@pytest.mark.parametrize(("threshold", "black"), [(-1.0, True), (1.0, False)])
def test_the_safety_checker_runs(threshold, black):
    pipe = ZOO["sd15"]()
    pipe.safety_checker, pipe.feature_extractor = safety_checker(threshold)
    wanted = own_image(pipe, GUIDED)
    assert (wanted == 0).all().item() is black
    assert difference(adaptive_image(wrapped(pipe, GUIDED)), wanted) <= ROUNDING


def test_without_text_encoder_prompts_are_given_as_embeddings():
    pipe = ZOO["sd15"]()
    embeds, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    wanted = own_image(pipe, GUIDED)
    pipe.text_encoder = None
    with pytest.raises(CapabilityError, match="prompt_embeds") as error:
        wrapped(pipe, GUIDED)
    two_lines(error.value)
    given = {**GUIDED, "prompt_embeds": embeds, "negative_prompt_embeds": negative}
    assert difference(check_same(pipe, given), wanted) <= 1e-6


def test_embeddings_of_each_prompt():
    pipe = ZOO["sd15"]()
    adaptive = wrapped(pipe, GUIDED)
    pairs = [pipe.encode_prompt(text, "cpu", 1, True) for text in (PROMPT, OTHER)]
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    made = adaptive(
        ["one", "two"],
        prompt_embeds=torch.cat([positive for positive, _ in pairs]),
        negative_prompt_embeds=torch.cat([negative for _, negative in pairs]),
        generator=generators,
        output_type="pt",
    ).images
    for image, text, seed in zip(made, (PROMPT, OTHER), (0, 1), strict=True):
        assert difference(image, own_image(pipe, GUIDED, text, seed)) <= ROUNDING


@pytest.mark.parametrize("name", ["sd15_inpaint_9", "sd15_pix2pix", "sd15_ip_adapter"])
def test_networks_with_more_inputs(name):
    builder = ZOO[name]
    given = {key: value for key, value in builder.arguments(PROMPT).items() if key not in ("prompt", "output_type")}
    check_same(builder(), given)


@pytest.mark.parametrize("channels", [8, 9])
def test_a_network_of_another_task_is_refused(channels):
    pipe = ZOO["sd15"]()
    pipe.unet = tiny.unet(in_channels=channels).eval()
    with pytest.raises(CapabilityError, match="the end of a call of StableDiffusionPipeline failed: ") as error:
        wrapped(pipe, GUIDED)
    assert str(channels) in two_lines(error.value)


def test_an_ip_adapter_without_an_image_is_refused():
    with pytest.raises(CapabilityError, match="TypeError: argument of type 'NoneType'") as error:
        wrapped(ZOO["sd15_ip_adapter"](), GUIDED)
    assert "ip_adapter_image" in two_lines(error.value)

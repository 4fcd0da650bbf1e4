"""Arguments of the pipeline's call in the forms that users give them, against the pipeline's own call."""

import copy
import pickle
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from zoo import ZOO
from zoo.compare import OTHER, PROMPT, ROUNDING, difference, own_image, two_lines, wrapped

from addiffusion_env import AdaptivePipeline
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.engine.process import REFINE_PRESETS, Action
from addiffusion_env.errors import CapabilityError, ConfigError, PromptError
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import BaseSampler
from addiffusion_lab.tiny_pipelines import parts as tiny

SD = {"num_inference_steps": 4, "height": 16, "width": 16, "guidance_scale": 3.0}
BETAS = {key: tiny.SD_NOISE[key] for key in ("beta_start", "beta_end", "beta_schedule")}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(seed, mode="RGB", size=(16, 16)):
    pixels = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture(scope="module")
def euler():
    pipe = ZOO["sd15"]()
    pipe.scheduler = diffusers.EulerDiscreteScheduler(**BETAS)
    return pipe, wrapped(pipe, SD)


# Generators.


@pytest.mark.parametrize("kind", ["EulerAncestralDiscreteScheduler", "DDIMScheduler"])
def test_a_generator_is_left_where_the_pipeline_leaves_it(kind):
    pipe = ZOO["sd15"]()
    pipe.scheduler = getattr(diffusers, kind)(**BETAS)
    adaptive, mine, own = wrapped(pipe, SD), seeded(), seeded()
    for text in (PROMPT, OTHER):  # the second image continues the noise of the first
        made = adaptive(text, generator=mine, output_type="pt").images[0]
        wanted = pipe(text, **SD, generator=own, output_type="pt").images[0]
        assert difference(made, wanted) <= ROUNDING
        assert torch.equal(mine.get_state(), own.get_state())


class Again(BaseSampler):
    """Starts a new attempt after the first step."""

    name = "again"

    def decide(self, requests):
        first = [request.lane.step == 1 and not request.lane.refinements for request in requests]
        return [Action.REFINE if again else Action.CONTINUE for again in first]


def test_another_attempt_leaves_a_generator_alone():
    """Its noise is keyed by prompt and seed: a generator that followed it would be the same after every call."""
    pipe = ZOO["sd15"]()
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler(**BETAS)
    plain = wrapped(pipe, SD)
    process = replace(plain.process, refine=REFINE_PRESETS["resample"])
    mine, own = seeded(), seeded()
    out = AdaptivePipeline(plain.backbone, Again(), process)(PROMPT, generator=mine)
    assert out.actions == [[0, 2, 0, 0, 0]]
    for _ in range(2):  # the initial noise, and that of the step before the new attempt
        torch.randn(1, 4, 8, 8, generator=own)
    assert torch.equal(mine.get_state(), own.get_state())


# Seeds beside a generator or latents.


@pytest.mark.parametrize("policy", ["continue", "stop:2", "checked_attempts:0,0.5,1"])
def test_seeds_that_a_generator_leaves_without_effect_are_refused(euler, policy):
    adaptive = AdaptivePipeline(euler[1].backbone, policy)
    prompt = replace(Prompt.of(PROMPT), arguments={"generator": seeded()})
    for made in (lambda: adaptive(PROMPT, seeds=7, generator=seeded()), lambda: list(adaptive.stream(prompt, seeds=7))):
        with pytest.raises(ConfigError, match="seeds would not take effect: the generator draws all noise") as error:
            made()
        two_lines(error.value)
    assert len(adaptive(PROMPT, generator=seeded()).images) == len(list(adaptive.stream(prompt))) == 1


def test_seeds_of_new_attempts_beside_a_generator(euler):
    process = replace(euler[1].process, refine=REFINE_PRESETS["resample"])
    again = AdaptivePipeline(euler[1].backbone, Again(), process)
    one, two = (again(PROMPT, seeds=seed, generator=seeded(), output_type="pt").images[0] for seed in (0, 1))
    assert difference(one, two) > 0.005


@pytest.mark.parametrize(("kind", "read"), [("EulerAncestralDiscreteScheduler", True), ("DDIMScheduler", False)])
def test_seeds_beside_latents_decide_the_noise_of_steps(kind, read):
    pipe = ZOO["sd15"]()
    pipe.scheduler = getattr(diffusers, kind)(**BETAS)
    adaptive, latents = wrapped(pipe, SD), torch.randn(1, 4, 8, 8, generator=seeded())
    one, two = (adaptive(PROMPT, seeds=seed, latents=latents, output_type="pt").images[0] for seed in (0, 1))
    assert (difference(one, two) > 0.005) == read


@pytest.mark.parametrize("where", ["wrapped", "called"])
def test_a_new_attempt_beside_latents_is_another_image(where):
    """It is the attempt of the same seed without them; from the given ones every attempt would be the same image."""
    latents = {"latents": torch.randn(1, 4, 8, 8, generator=seeded())}
    plain = wrapped(ZOO["sd15"](), {**SD, **latents} if where == "wrapped" else SD)
    process = replace(plain.process, refine=REFINE_PRESETS["resample"])
    again = AdaptivePipeline(plain.backbone, Again(), process)
    called = latents if where == "called" else {}
    made, first = (adaptive(PROMPT, output_type="pt", **called).images[0] for adaptive in (again, plain))
    assert difference(made, first) > 0.005
    wanted = AdaptivePipeline(wrapped(ZOO["sd15"](), SD).backbone, Again(), process)(PROMPT, output_type="pt").images[0]
    assert difference(made, wanted) <= ROUNDING


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_generator_on_a_gpu():
    pipe = ZOO["sd15"]().to("cuda")
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler(**BETAS)
    made = wrapped(pipe, SD)(PROMPT, generator=torch.Generator("cuda").manual_seed(0), output_type="pt").images[0]
    own = pipe(PROMPT, **SD, generator=torch.Generator("cuda").manual_seed(0), output_type="pt").images[0]
    assert difference(made, own.cpu()) <= 1e-2


@pytest.mark.parametrize(
    ("generators", "images"),
    [(lambda g: [g, g], 1), (lambda g: [g, seeded()], 2)],
    ids=["one twice", "two images of each"],
)
def test_a_generator_of_two_images_is_refused(euler, generators, images):
    with pytest.raises(ConfigError, match=r"generators? for \d images: an image would depend on previous") as error:
        euler[1]([PROMPT, OTHER], generator=generators(seeded()), num_images_per_prompt=images)
    two_lines(error.value)


def test_a_generator_of_every_image_is_refused():
    with pytest.raises(ConfigError, match="one generator for every image: an image would depend on previous") as error:
        wrapped(ZOO["sd15"](), {**SD, "generator": seeded()})
    two_lines(error.value)


# Schedules.


@pytest.mark.parametrize(
    ("given", "evaluations"),
    [
        ({"timesteps": np.array([999, 700, 300])}, 3),
        ({"sigmas": np.array([14.0, 5.0, 1.0, 0.0])}, 3),
        ({"timesteps": [999, 700, 300], "num_inference_steps": 7}, 3),
        ({"guidance_scale": np.float32(5)}, 4),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_arrays_and_numbers_of_numpy(euler, given, evaluations):
    pipe, adaptive = euler
    out = adaptive(PROMPT, generator=seeded(), output_type="pt", **given)
    assert difference(out.images[0], own_image(pipe, {**SD, **given})) <= ROUNDING
    assert out.nfe.tolist() == [evaluations]


def test_a_list_of_timesteps_sets_the_steps_of_the_policy(euler):
    backbone = euler[1].backbone
    with pytest.raises(ConfigError, match="timesteps would not take effect: policy 'fixed:5' sets steps=5"):
        AdaptivePipeline(backbone, "fixed:5")(PROMPT, timesteps=[999, 700, 300])
    out = AdaptivePipeline(backbone, "checked_attempts:0,0.5,1")(
        PROMPT, timesteps=[999, 800, 600, 500, 400, 300, 200, 99]
    )
    assert out.actions == [[0, 1]]  # an early exit after half of eight steps


def test_a_number_for_a_list_of_steps_is_named(euler):
    with pytest.raises(ConfigError, match="timesteps must be a list, got 5") as error:
        euler[1](PROMPT, timesteps=5)
    two_lines(error.value)


def test_other_steps_than_a_list_of_every_image(euler):
    adaptive = wrapped(euler[0], {**SD, "num_inference_steps": 7, "timesteps": [999, 700, 300]})
    assert adaptive(PROMPT).nfe.tolist() == [3]
    with pytest.raises(ConfigError, match="5 steps would not take effect: timesteps lists 3") as error:
        AdaptivePipeline(adaptive.backbone, "fixed:5")(PROMPT)
    two_lines(error.value)
    assert AdaptivePipeline(adaptive.backbone, "continue")(PROMPT, timesteps=[999, 1]).nfe.tolist() == [2]


@pytest.mark.parametrize("given", [{"denoising_end": 0.3}, {"denoising_end": 0.6}])
def test_the_first_part_of_sdxl(given):
    """The pipeline looks at all timesteps before its loop takes the first of them."""
    pipe, settings = ZOO["sdxl"](), {**SD, "num_inference_steps": 10}
    adaptive = wrapped(pipe, settings)
    out = adaptive(PROMPT, generator=seeded(), output_type="pt", **given)
    assert difference(out.images[0], own_image(pipe, {**settings, **given})) <= ROUNDING
    assert out.nfe.tolist() == [10 * given["denoising_end"]]
    assert difference(own_image(pipe, {**settings, **given}), own_image(pipe, settings)) > 0.005


@pytest.mark.parametrize("where", ["wrapped", "called"])
@pytest.mark.parametrize(("strength", "nfe"), [(1.0, 8), (0.5, 4), (0.1, 1)])
def test_an_early_exit_of_a_schedule_from_its_middle(where, strength, nfe):
    """60 % of the steps that there are, and one evaluation for what remains up to the first step of ten."""
    given = {"image": noise(0), "num_inference_steps": 10, "strength": strength if where == "wrapped" else 0.75}
    adaptive = wrapped(ZOO["sd15_img2img"](), given, "checked_attempts:0,0.6,1")
    called = {"strength": strength} if where == "called" else {}
    assert adaptive(PROMPT, **called).nfe.tolist() == [nfe]


class At(Again):
    """Never starts a new attempt; decides at the places of the process."""

    def decide(self, requests):
        return [Action.CONTINUE for _ in requests]


def test_places_of_a_process_of_ones_own_stay_where_they_are():
    plain = wrapped(ZOO["sd15_img2img"](), {"image": noise(0), "num_inference_steps": 10, "strength": 0.5})
    adaptive = AdaptivePipeline(plain.backbone, At(), replace(plain.process, decide_at=(3, 6)))
    assert adaptive(PROMPT).actions == [[0, 0]]  # at the start and after three of five steps
    assert adaptive(PROMPT, strength=0.8).actions == [[0, 0, 0]]


def test_a_strength_of_numpy_and_one_that_leaves_no_step():
    given = {"image": noise(0), "num_inference_steps": 20}
    assert wrapped(ZOO["sd15_img2img"](), {**given, "strength": np.float32(0.1)})(PROMPT).nfe.tolist() == [2]
    with pytest.raises(ConfigError, match=r"strength=0 of 20 steps leaves no step .*\n  -> use strength=0.05 or more"):
        wrapped(ZOO["sd15_img2img"](), {**given, "strength": 0.0})


def test_without_prompts_nothing_is_called():
    adaptive = wrapped(ZOO["sd15"](), SD, "checked_attempts:0,0.5,1")
    with pytest.raises(PromptError, match="no prompts were given"):
        adaptive([], num_inference_steps=6)


def test_a_stop_after_the_end_of_a_schedule_from_its_middle_is_refused():
    adaptive = wrapped(ZOO["sd15_img2img"](), {"image": noise(0), "num_inference_steps": 10}, "stop:3")
    assert adaptive(PROMPT, strength=0.4).nfe.tolist() == [4]
    with pytest.raises(ConfigError, match="stop:3 never stops on a schedule of 3 evaluations") as error:
        adaptive(PROMPT, strength=0.3)
    two_lines(error.value)


@pytest.mark.parametrize(("kind", "rest"), [("HeunDiscreteScheduler", 2), ("KDPM2DiscreteScheduler", 3)])
def test_an_early_exit_of_a_second_order_schedule(kind, rest):
    """60 % of the 19 evaluations of ten steps, and what the early exit takes for the rest."""
    pipe = ZOO["sd15"]()
    pipe.scheduler = getattr(diffusers, kind)(**BETAS)
    adaptive = wrapped(pipe, {**SD, "num_inference_steps": 10}, "checked_attempts:0,0.6,1")
    assert adaptive.process.decide_at == (11,) and adaptive.process.steps == 10
    assert adaptive(PROMPT).nfe.tolist() == [11 + 3]
    assert adaptive(PROMPT, num_inference_steps=5).nfe.tolist() == [5 + rest]  # of nine
    plain = AdaptivePipeline(adaptive.backbone, "continue")
    assert plain(PROMPT).nfe.tolist() == [19] and plain.process.decision_steps == tuple(range(1, 19))
    assert AdaptivePipeline(adaptive.backbone, "fixed:3").process.evaluations is None
    assert AdaptivePipeline(adaptive.backbone, "stop:12")(PROMPT).actions == [[0] * 12 + [1]]


def test_a_new_attempt_of_a_schedule_from_its_middle():
    plain = wrapped(ZOO["sd15_img2img"](), {"image": noise(0), "num_inference_steps": 10, "strength": 0.5})
    process = replace(plain.process, refine=replace(REFINE_PRESETS["resample"], return_to=6))
    out = AdaptivePipeline(plain.backbone, Again(), process)(PROMPT)
    assert out.actions == [[0, 2, 0]] and out.nfe.tolist() == [1 + 4 + 1]  # it returns to the last of five steps


@pytest.mark.parametrize("given", [{"height": [16, 24]}, {"guidance_rescale": (0.1, 0.2)}, {"eta": [0.0, 1.0]}])
def test_a_list_for_one_number_is_named(euler, given):
    with pytest.raises(ConfigError, match=f"{next(iter(given))} must be one number, got") as error:
        euler[1]([PROMPT, OTHER], **given)
    two_lines(error.value)


def test_an_argument_of_a_prompt_is_checked(euler):
    prompt = replace(Prompt.of(PROMPT), arguments={"heigth": 24})
    with pytest.raises(ConfigError, match=r"has no argument 'heigth'\n.*did you mean 'height'"):
        list(euler[1].stream([prompt]))


def test_steps_of_a_prompt_alone_are_refused(euler):
    prompt = replace(Prompt.of(PROMPT), arguments={"num_inference_steps": 2})
    with pytest.raises(ConfigError, match="num_inference_steps=2 of a prompt would not take effect: all images take 4"):
        euler[1](prompt)


# Images.


def test_rows_of_an_array_are_one_image_of_each_prompt():
    pipe, given = ZOO["sd15_img2img"](), {"image": noise(0), "num_inference_steps": 4, "strength": 0.75}
    adaptive, pictures = wrapped(pipe, given), [noise(1), noise(2)]
    rows = np.stack([np.asarray(picture) for picture in pictures]).astype(np.float32) / 255
    tensors = torch.from_numpy(rows).permute(0, 3, 1, 2)
    for batch in (rows, tensors):
        made = adaptive([PROMPT, OTHER], image=batch, generator=[seeded(), seeded(1)], output_type="pt").images
        for row, (text, picture) in enumerate(zip((PROMPT, OTHER), pictures, strict=True)):
            assert difference(made[row], own_image(pipe, {**given, "image": picture}, text, row)) <= ROUNDING
    # As many prompts as a single image has channels.
    texts = [PROMPT, OTHER, "a bus"]
    made = adaptive(texts, image=tensors[0], generator=[seeded(seed) for seed in range(3)], output_type="pt").images
    for row, text in enumerate(texts):
        assert difference(made[row], own_image(pipe, {**given, "image": pictures[0]}, text, row)) <= ROUNDING


def test_images_of_each_controlnet():
    """A list is for every prompt where the pipeline takes a list; one for each prompt is a list of lists."""
    builder = ZOO["sd15_controlnets"]
    pipe, given = builder(), {**builder.kwargs, "num_inference_steps": 3}
    adaptive, pictures = wrapped(pipe, given), [noise(seed) for seed in range(4)]
    every = {**given, "image": pictures[:2]}
    made = adaptive([PROMPT, OTHER], image=pictures[:2], generator=[seeded(), seeded(1)], output_type="pt").images
    for row, text in enumerate((PROMPT, OTHER)):
        assert difference(made[row], own_image(pipe, every, text, row)) <= ROUNDING
    made = adaptive([PROMPT], image=[pictures[2:]], generator=seeded(), output_type="pt").images[0]
    assert difference(made, own_image(pipe, {**given, "image": pictures[2:]})) <= ROUNDING
    with pytest.raises(ConfigError, match=r"image has 3 entries for 1 prompts\n.*a list of lists"):
        adaptive([PROMPT], image=[pictures[:2]] * 3)


@pytest.mark.parametrize("lanes", [1, 2])
def test_images_of_different_sizes_are_named(lanes):
    pipe = ZOO["sd15_img2img"]()
    adaptive = wrapped(pipe, {"image": noise(0), "num_inference_steps": 4, "strength": 0.75})
    adaptive.max_lanes = lanes
    with pytest.raises(ConfigError, match=r"differ in size: \(4, 8, 8\), \(4, 16, 12\)") as error:
        adaptive([PROMPT, OTHER], image=[noise(1), noise(2, size=(24, 32))])
    two_lines(error.value)


def test_a_pipeline_that_needs_an_image_says_where_it_is_given():
    with pytest.raises(ConfigError, match=r"PipelineBackbone.from_pipeline\(pipe, pipeline_kwargs=") as error:
        AdaptivePipeline(ZOO["sd15_img2img"](), "continue")
    two_lines(error.value)


# Schedulers that do not fit, copies.


def test_a_scheduler_whose_step_fails_is_named():
    pipe = ZOO["sd15"]()
    adaptive = wrapped(pipe, SD)
    pipe.scheduler = diffusers.EulerDiscreteScheduler(**BETAS, prediction_type="flow_prediction")
    with pytest.raises(CapabilityError, match=r"a step of the EulerDiscreteScheduler failed: .*flow_") as error:
        adaptive(PROMPT)
    two_lines(error.value)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_has_its_own_pipeline(copied):
    pipe = ZOO["sd15"]()
    adaptive = AdaptivePipeline(PipelineBackbone(pipe, SD, preview="none", truncate_prompts=True), "continue")
    adaptive(PROMPT)
    other = copied(adaptive)
    assert other.backbone.options == adaptive.backbone.options
    other.backbone.pipe.unet.conv_out.weight.data.mul_(2)
    for one in (adaptive, other):
        made = one(PROMPT, generator=seeded(), output_type="pt").images[0]
        assert difference(made, own_image(one.backbone.pipe, SD)) <= ROUNDING
    assert difference(own_image(pipe, SD), own_image(other.backbone.pipe, SD)) > 0.005

"""Invalid input to the general backbone raises the package's two-line errors, when it is wrapped or called."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import diffusers
import pytest
import torch
from zoo import REFUSED, ZOO
from zoo.compare import OTHER, PROMPT, ROUNDING, adaptive_image, difference, own_image, two_lines, wrapped

from addiffusion_env import AdaptivePipeline
from addiffusion_env.engine.coroutines import act, finished
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import open_lane
from addiffusion_env.engine.process import REFINE_PRESETS
from addiffusion_env.errors import CapabilityError, ConfigError
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers.image_scores import NoScorers
from addiffusion_lab.tiny_pipelines import parts as tiny

SD = {"num_inference_steps": 4, "height": 16, "width": 16, "guidance_scale": 3.0}
BETAS = {key: tiny.SD_NOISE[key] for key in ("beta_start", "beta_end", "beta_schedule")}
SAYS = {
    "kandinsky22_decoder": "takes no prompt",
    "kandinsky22_prior": "without images",
    "kandinsky22_combined": "of a two-stage model",
    "wan": "WanPipelineOutput without images",
    "stable_audio": "audio pipelines are not supported",
    "dit": "takes no prompt",
    "ddpm": "takes no prompt",
}


@pytest.fixture(scope="module")
def adaptive():
    return wrapped(ZOO["sd15"](), SD)


@pytest.mark.parametrize("name", REFUSED)
def test_pipelines_that_are_no_backbone(name):
    builder = REFUSED[name]
    given = builder.arguments(PROMPT)
    given = {key: value for key, value in given.items() if key not in ("prompt", "output_type")}
    with pytest.raises(CapabilityError, match=SAYS[name]) as error:
        wrapped(builder(), given)
    two_lines(error.value)


@pytest.mark.parametrize("pipe", [None, "sd15", torch.nn.Linear(2, 2), SimpleNamespace(components={}, scheduler=3)])
def test_what_is_no_pipeline(pipe):
    with pytest.raises(CapabilityError, match="is not a diffusers pipeline") as error:
        AdaptivePipeline(pipe, "continue")
    two_lines(error.value)


@pytest.mark.parametrize(
    ("name", "kind", "settings", "says"),
    [
        ("sd15", "IPNDMScheduler", {}, "noise levels of a IPNDMScheduler"),
        ("sd15", "CMStochasticIterativeScheduler", {}, "CMStochasticIterativeScheduler"),
        ("sd15", "ScoreSdeVeScheduler", {}, "ScoreSdeVeScheduler"),
        ("sd15", "FlowMatchHeunDiscreteScheduler", {}, "StableDiffusionPipeline"),
        ("flux", "FlowMatchHeunDiscreteScheduler", {}, "set_timesteps"),
        ("flux", "DDIMScheduler", BETAS, "DDIMScheduler"),
    ],
)
def test_schedulers_that_are_not_known_here(name, kind, settings, says):
    pipe = ZOO[name]()
    pipe.scheduler = getattr(diffusers, kind)(**settings)
    with pytest.raises((CapabilityError, ConfigError), match=says) as error:
        wrapped(pipe, {"num_inference_steps": 4, "height": 16, "width": 16})
    two_lines(error.value)


def test_pndm_continues_after_a_refinement():
    """PNDM counts its steps and cannot enter its plan in the middle: the rest uses first-order steps."""
    pipe = ZOO["sd15"]()
    pipe.scheduler = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True)
    adaptive = wrapped(pipe, {**SD, "num_inference_steps": 6})
    backbone, process = adaptive.backbone, replace(adaptive.process, refine=REFINE_PRESETS["resample_short"])

    def coroutine():
        lane = open_lane(backbone, process, Prompt.of(PROMPT), 0)
        for action in (0, 0, 2):
            lane = yield from act(backbone, process, lane, action)
        while lane.remaining:
            lane = yield from act(backbone, process, lane, 0)
        return lane, (yield from finished(lane)).tensor

    with pytest.warns(UserWarning, match="a PNDMScheduler cannot enter its plan in the middle") as warned:
        lane, image = Engine(backbone, NoScorers(), solver="scheduler").run([coroutine()])[0]
    assert lane.refinements == 1 and image.isfinite().all() and image.std() > 0.01
    assert any("solver=ddim" in str(item.message) for item in warned)


# Arguments.


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"negative_promt": "blur"}, "did you mean 'negative_prompt'"),
        ({"guidance": 3.0}, "guidance_scale"),
        ({"steps": 3}, "has no argument 'steps'"),
        ({"return_dict": False}, "the engine reads the output"),
        ({"callback": print}, "use callback_on_step_end"),
        ({"true_cfg_scale": 2.0}, "has no argument 'true_cfg_scale'"),
    ],
)
@pytest.mark.parametrize("where", ["wrapped", "called"])
def test_arguments_that_are_not_the_users(adaptive, given, says, where):
    with pytest.raises(ConfigError) as error:
        wrapped(adaptive.backbone.pipe, {**SD, **given}) if where == "wrapped" else adaptive(PROMPT, **given)
    assert says in two_lines(error.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"generator": torch.Generator()}, "one generator for 2 images"),
        ({"generator": [torch.Generator()] * 3}, "generator has 3 entries for 2 prompts"),
        ({"negative_prompt": ["a", "b", "c"]}, "negative_prompt has 3 entries for 2 prompts"),
        ({"latents": torch.zeros(3, 4, 8, 8)}, "latents"),
        ({"guidance_scale": [1.0, 2.0]}, "guidance_scale must be one number"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be one number"),
        ({"num_inference_steps": 0}, "steps"),
        ({"num_inference_steps": 2.5}, "num_inference_steps"),
        ({"num_inference_steps": "4"}, "num_inference_steps"),
        ({"num_inference_steps": 2000}, "steps"),
        ({"height": 15}, "height"),
        ({"prompt_embeds": torch.zeros(2, 3, 5)}, "embeds"),
        ({"clip_skip": 1}, "clip_skip"),
        ({"timesteps": [900, 500], "sigmas": [3.0, 1.0]}, "timesteps"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_values_that_do_not_fit(adaptive, given, says):
    with pytest.raises((ConfigError, CapabilityError)) as error:
        adaptive([PROMPT, OTHER], **given)
    assert says in two_lines(error.value)


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        pytest.param("glm_image", {"height": 32}, "a step of GlmImagePipeline failed: .* must match", id="network"),
        pytest.param(
            "pag_pixart_sigma", {"pag_adaptive_scale": 0.5}, "an evaluation of .* failed: .*Boolean", id="loop"
        ),
        pytest.param("sd3_inpaint", {"padding_mask_crop": 2}, "refuses its arguments: .*Only PIL", id="after the loop"),
    ],
)
def test_an_error_of_the_pipeline_on_the_way_is_named(name, given, says):
    """The pipeline's own call raises Python's or torch's errors there; the next call is unaffected."""
    builder = ZOO[name]
    usual = {key: value for key, value in builder.arguments(PROMPT).items() if key not in ("prompt", "output_type")}
    with pytest.raises((RuntimeError, ValueError)):
        own_image(builder(), {**usual, **given})
    pipe = builder()
    adaptive = wrapped(pipe, usual)
    with pytest.raises((CapabilityError, ConfigError), match=says) as error:
        adaptive([PROMPT, OTHER], **given)
    two_lines(error.value)
    assert difference(adaptive_image(adaptive), own_image(pipe, usual)) <= ROUNDING


def test_steps_against_the_policy(adaptive):
    fixed = AdaptivePipeline(adaptive.backbone, "fixed:20")
    with pytest.raises(ConfigError, match="num_inference_steps would not take effect: policy 'fixed:20'") as error:
        fixed(PROMPT, num_inference_steps=30)
    two_lines(error.value)


@pytest.mark.parametrize("given", [{"eta": 1.0}, {"timesteps": [900, 500]}])
def test_what_only_the_scheduler_reads_beside_another_solver(adaptive, given):
    own = AdaptivePipeline(adaptive.backbone, "fixed:5,leading")
    with pytest.raises(ConfigError, match=f"{next(iter(given))} would not take effect: solver=ddim") as error:
        own(PROMPT, **given)
    two_lines(error.value)


def test_a_spacing_beside_the_pipelines_scheduler(adaptive):
    with pytest.raises(CapabilityError, match="spacing=trailing would not take effect") as error:
        AdaptivePipeline(adaptive.backbone, "continue", process=replace(adaptive.process, spacing="trailing"))
    two_lines(error.value)


def test_nothing_stays_of_a_refused_call(adaptive):
    before = adaptive_image(adaptive)
    for given in ({"height": 15}, {"prompt_embeds": torch.zeros(2, 3, 5)}, {"num_inference_steps": 2000}):
        with pytest.raises((ConfigError, CapabilityError)):
            adaptive([PROMPT, OTHER], **given)
    assert torch.equal(before, adaptive_image(adaptive))

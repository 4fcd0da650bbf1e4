"""Schedulers as configured by users: the image equals that of the pipeline, and an early exit finishes."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest
import torch
from zoo import ZOO
from zoo.compare import OTHER, PROMPT, ROUNDING, adaptive_image, check_same, difference, own_image, wrapped

from addiffusion_env import AdaptivePipeline
from addiffusion_env.engine.coroutines import act, finished
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import open_lane
from addiffusion_env.engine.process import REFINE_PRESETS
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers.image_scores import NoScorers
from addiffusion_lab.tiny_pipelines import parts as tiny

SD = {"num_inference_steps": 6, "height": 16, "width": 16, "guidance_scale": 3.0}
FLUX = {"num_inference_steps": 6, "height": 16, "width": 16, "max_sequence_length": 32}
BETAS = {key: tiny.SD_NOISE[key] for key in ("beta_start", "beta_end", "beta_schedule")}
SCHEDULERS = {
    "DDIM": ("DDIMScheduler", {**BETAS, "clip_sample": False}),
    "DDIM trailing": ("DDIMScheduler", {**BETAS, "clip_sample": False, "timestep_spacing": "trailing"}),
    "DDIM clip_sample": ("DDIMScheduler", {**BETAS, "clip_sample": True}),
    "DDIM zero SNR": (
        "DDIMScheduler",
        {
            **BETAS,
            "clip_sample": False,
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
        },
    ),
    "Euler zero SNR": (
        "EulerDiscreteScheduler",
        {**BETAS, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ),
    "DPM++ karras": ("DPMSolverMultistepScheduler", {**BETAS, "use_karras_sigmas": True}),
    "DPM++ sde": ("DPMSolverMultistepScheduler", {**BETAS, "algorithm_type": "sde-dpmsolver++"}),
    "DPM++ singlestep": ("DPMSolverSinglestepScheduler", BETAS),
    "Euler karras": ("EulerDiscreteScheduler", {**BETAS, "use_karras_sigmas": True}),
    "Euler exponential": ("EulerDiscreteScheduler", {**BETAS, "use_exponential_sigmas": True}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", BETAS),
    "DDPM": ("DDPMScheduler", {**BETAS, "clip_sample": False}),
    "LCM": ("LCMScheduler", {**BETAS, "clip_sample": False}),
    "TCD": ("TCDScheduler", {**BETAS, "clip_sample": False}),
    "Heun": ("HeunDiscreteScheduler", BETAS),
    "KDPM2": ("KDPM2DiscreteScheduler", BETAS),
    "KDPM2 ancestral": ("KDPM2AncestralDiscreteScheduler", BETAS),
    "LMS": ("LMSDiscreteScheduler", BETAS),
    "DEIS": ("DEISMultistepScheduler", BETAS),
    "UniPC": ("UniPCMultistepScheduler", BETAS),
    "UniPC flow": ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    "SA": ("SASolverScheduler", BETAS),
    "PNDM": ("PNDMScheduler", {**BETAS, "skip_prk_steps": True}),
    "PNDM Runge-Kutta": ("PNDMScheduler", BETAS),
    "EDM Euler": ("EDMEulerScheduler", {}),
    "EDM DPM++": ("EDMDPMSolverMultistepScheduler", {}),
}
FLOWS = {
    "UniPC flow_shift": (
        "UniPCMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    ),
    "Euler shift": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "Euler karras": ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "Euler shift_terminal": ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}),
}


FAST = (
    "DDIM zero SNR",
    "DDIM clip_sample",
    "DPM++ karras",
    "Euler ancestral",
    "LCM",
    "Heun",
    "EDM Euler",
    "Euler shift",
)


def entries(names):
    return [pytest.param(name, marks=() if name in FAST or "flow" in name else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def kept():
    """A tiny pipeline by name with its adaptive pipeline; tests may replace its scheduler."""
    made = {}

    def get(name, given):
        if name not in made:
            pipe = ZOO[name]()
            made[name] = pipe, wrapped(pipe, given)
        return made[name]

    return get


def check_early_exit(adaptive):
    """Stops after two steps, with an early exit of two evaluations."""
    process = replace(adaptive.process, early_exit_steps=2)
    stopped = AdaptivePipeline(adaptive.backbone, "stop:2", process=process)
    output = stopped([PROMPT, OTHER], output_type="pt")
    assert output.images.isfinite().all() and difference(*output.images) > 0.005
    assert output.nfe.tolist() == [4, 4]


def check_scheduler(pipe, given, adaptive):
    check_same(pipe, given, adaptive)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    made = adaptive([PROMPT, OTHER], generator=generators, output_type="pt").images
    for image, text, seed in zip(made, (PROMPT, OTHER), (0, 1), strict=True):
        assert difference(image, own_image(pipe, given, text, seed)) <= ROUNDING
    check_early_exit(adaptive)


@pytest.mark.parametrize("name", entries(SCHEDULERS))
def test_a_diffusion_scheduler_is_followed(kept, name):
    kind, settings = SCHEDULERS[name]
    pipe, adaptive = kept("sd15", SD)
    pipe.scheduler = getattr(diffusers, kind)(**settings)
    check_scheduler(pipe, SD, adaptive)


@pytest.mark.parametrize("name", entries(FLOWS))
def test_a_flow_scheduler_is_followed(kept, name):
    kind, settings = FLOWS[name]
    pipe, adaptive = kept("flux", FLUX)
    pipe.scheduler = getattr(diffusers, kind)(**settings)
    check_scheduler(pipe, FLUX, adaptive)


def test_set_shift_after_wrapping_is_followed():
    pipe = ZOO["flux"]()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    adaptive = wrapped(pipe, FLUX)
    before = adaptive_image(adaptive)
    pipe.scheduler.set_shift(3.0)
    assert difference(before, check_same(pipe, FLUX, adaptive)) > 0.005


class WithGenerator(diffusers.FlowMatchEulerDiscreteScheduler):
    """Flux does not pass its generator to steps; this scheduler stores it."""

    generator: torch.Generator

    def step(self, *args, **kwargs):
        return super().step(*args, **{**kwargs, "generator": self.generator})


def test_noise_of_steps_is_the_images_own():
    """Even if the pipeline's steps draw from torch's global generator, an image is a function of its generator."""
    pipe = ZOO["flux"]()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    adaptive = wrapped(pipe, FLUX)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 0)]
    made = adaptive([OTHER, PROMPT], generator=generators, output_type="pt").images[1]
    assert difference(made, adaptive_image(adaptive)) <= ROUNDING
    pipe.scheduler = WithGenerator(stochastic_sampling=True)
    pipe.scheduler.generator = torch.Generator().manual_seed(0)
    wanted = pipe(PROMPT, **FLUX, generator=pipe.scheduler.generator, output_type="pt").images[0]
    assert difference(made, wanted) <= ROUNDING
    assert difference(wanted, own_image(ZOO["flux"](), FLUX)) > 0.005


@pytest.mark.parametrize("preset", ["as_published", "resample_short"])
@pytest.mark.parametrize("kind", ["EulerAncestralDiscreteScheduler", "LCMScheduler", "KDPM2AncestralDiscreteScheduler"])
def test_noise_of_steps_after_a_refinement_is_the_images_own(kind, preset):
    """A refinement leaves the scheduler's plan; its noise stays that of the prompt and seed.

    A second-order scheduler that enters its plan again in the middle of a step divides by 0 in the last one.
    """
    pipe = ZOO["sd15"]()
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    adaptive = wrapped(pipe, {"num_inference_steps": 6, "height": 16, "width": 16, "guidance_scale": 3.0})
    backbone, process = adaptive.backbone, replace(adaptive.process, refine=REFINE_PRESETS[preset])

    def refined():
        lane = open_lane(backbone, process, Prompt.of(PROMPT), 0)
        for action in (0, 0, 2):
            lane = yield from act(backbone, process, lane, action)
        while lane.remaining:
            lane = yield from act(backbone, process, lane, 0)
        return (yield from finished(lane)).tensor

    images = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            images += Engine(backbone, NoScorers(), solver="scheduler").run([refined()])
            assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(*images)

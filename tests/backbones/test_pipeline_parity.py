"""A lane that always continues is the diffusers pipeline: same noise, same schedule, same latents."""

from __future__ import annotations

import copy

import pytest
import torch

from addiffusion_env.backbones.emoji import EmojiBackbone
from addiffusion_env.backbones.stable_diffusion import StableDiffusionParts
from addiffusion_env.engine.coroutines import advance
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import open_lane
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.prompts import Prompt
from addiffusion_lab.tiny_pipelines.flux import flux_transformer

SLOW = pytest.mark.slow  # one UNet and one transformer run in `make test`; the backbone is the same for all
NAMES = ("sd15", pytest.param("sd21", marks=SLOW), pytest.param("sdxl", marks=SLOW), "flux")
PROMPTS = [Prompt.of(text) for text in ("a photo of a red cup", "a dog and the cat", "a sofa")]
SEED = 11


def process_of(backbone, steps, **changes):
    capabilities = backbone.capabilities
    settings = {
        "steps": steps,
        "spacing": capabilities.default_spacing,
        "solver": capabilities.default_solver,
        "guidance_scale": capabilities.default_guidance,
    }
    return ProcessConfig(**{**settings, **changes})


def to_the_end(process, lane):
    while lane.remaining:
        lane = yield from advance(process, lane)
    return lane


def continued(backbone, scorers, prompts, processes):
    """The lanes' final latents, all in one engine."""
    engine = Engine(backbone, scorers, solver=processes[0].solver)
    lanes = [open_lane(backbone, process, prompt, SEED) for process, prompt in zip(processes, prompts, strict=True)]
    ended = engine.run([to_the_end(process, lane) for process, lane in zip(processes, lanes, strict=True)])
    return torch.cat([lane.latents.x for lane in ended]), engine.counters


def by_pipeline(pipe, backbone, prompts, process, **changes):
    """The pipeline's final latents from the same noise."""
    noise = torch.cat([open_lane(backbone, process, prompt, SEED).latents.x for prompt in prompts])
    noise = noise.to(backbone.dtype)
    settings = {"num_inference_steps": process.steps, "output_type": "latent", **changes}
    texts = [prompt.text for prompt in prompts]
    if backbone.name == "flux":
        settings |= {"height": 16, "width": 16, "max_sequence_length": backbone.capabilities.max_tokens}
        tokens = pipe(texts, latents=pipe._pack_latents(noise, *noise.shape), **settings).images
        return pipe._unpack_latents(tokens, 8, 8, vae_scale_factor=1)
    return pipe(texts, latents=noise, guidance_scale=process.guidance_scale, **settings).images


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("name", NAMES)
def test_one_lane(tiny, tiny_scorers, name, steps):
    backbone = tiny(name).load()
    process = process_of(backbone, steps)
    ours, _ = continued(backbone, tiny_scorers, PROMPTS[:1], [process])
    theirs = by_pipeline(tiny(name).pipe, backbone, PROMPTS[:1], process)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.numeric
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_lanes_at_mixed_noise_levels(tiny, tiny_scorers, name):
    backbone = tiny(name).load()
    processes = [process_of(backbone, steps) for steps in (3, 5, 4)]
    ours, counters = continued(backbone, tiny_scorers, PROMPTS, processes)
    assert counters.denoiser_batches == 5  # as many calls as the longest lane has steps
    for row, (prompt, process) in enumerate(zip(PROMPTS, processes, strict=True)):
        theirs = by_pipeline(tiny(name).pipe, backbone, [prompt], process)
        torch.testing.assert_close(ours[row : row + 1], theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_within_its_own_rounding(tiny, tiny_scorers, name):
    backbone = tiny(name).load(dtype="bfloat16")
    assert backbone.dtype == torch.bfloat16
    process = process_of(backbone, 2, **({} if name == "flux" else {"guidance_scale": 2.0}))
    ours, _ = continued(backbone, tiny_scorers, PROMPTS, [process] * 3)
    assert ours.dtype == torch.float32  # the solver is more precise than the network
    half = copy.deepcopy(tiny(name).pipe).to(torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    theirs = by_pipeline(half, backbone, PROMPTS, process).float()
    exact = by_pipeline(tiny(name).pipe, tiny(name).load(), PROMPTS, process)
    rounding = (theirs - exact).norm() / exact.norm()
    assert 0 < rounding < 0.1
    assert (ours - exact).norm() / exact.norm() <= 1.5 * rounding


@pytest.mark.parametrize("name", ["sd15", pytest.param("sdxl", marks=SLOW)])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_euler_pipelines_give_equal_final_latents(tiny, tiny_scorers, name, final):
    from diffusers import EulerDiscreteScheduler

    pipe = copy.deepcopy(tiny(name).pipe)
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="leading", final_sigmas_type=final
    )
    pipe.set_progress_bar_config(disable=True)
    backbone = tiny(name).wrap(pipe)
    process = process_of(backbone, 5)
    assert (backbone.sigmas(5, process.spacing)[-1] == 0) == (final == "zero")
    ours, _ = continued(backbone, tiny_scorers, PROMPTS[:2], [process] * 2)
    # k-diffusion's latents are x / alpha: the same where sigma is 0, larger by sqrt(1 + sigma^2) elsewhere.
    last = float(backbone.sigmas(5, process.spacing)[-1])
    theirs = by_pipeline(pipe, backbone, PROMPTS[:2], process) / (1 + last**2) ** 0.5
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(
    ("solver", "kind"), [("dpmpp_2m", "DPMSolverMultistepScheduler"), ("unipc", "UniPCMultistepScheduler")]
)
@pytest.mark.parametrize("name", ["sd15", pytest.param("sdxl", marks=SLOW)])
def test_multistep_pipelines(tiny, tiny_scorers, name, solver, kind):
    import diffusers

    pipe = copy.deepcopy(tiny(name).pipe)
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.set_progress_bar_config(disable=True)
    backbone = tiny(name).wrap(pipe)
    process = process_of(backbone, 5, solver=solver, spacing="trailing")
    ours, _ = continued(backbone, tiny_scorers, PROMPTS[:2], [process] * 2)
    torch.testing.assert_close(ours, by_pipeline(pipe, backbone, PROMPTS[:2], process), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [{"shift": 3.0}, {"use_dynamic_shifting": True}], ids=str)
def test_flux_with_a_shift(tiny, tiny_scorers, config):
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe = copy.deepcopy(tiny("flux").pipe)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(**config)
    pipe.set_progress_bar_config(disable=True)
    backbone = tiny("flux").wrap(pipe)
    process = process_of(backbone, 4)
    ours, _ = continued(backbone, tiny_scorers, PROMPTS, [process] * 3)
    torch.testing.assert_close(ours, by_pipeline(pipe, backbone, PROMPTS, process), atol=1e-4, rtol=1e-4)


def test_flux_dev_reads_its_guidance(tiny, tiny_scorers):
    pipe = copy.deepcopy(tiny("flux").pipe)
    torch.manual_seed(6)
    pipe.register_modules(transformer=flux_transformer(64, None, num_layers=2).eval())
    pipe.set_progress_bar_config(disable=True)
    backbone = tiny("flux").wrap(pipe, pipeline_kwargs={"max_sequence_length": 24, "guidance_scale": 6.0})
    process = process_of(backbone, 3)
    ours, _ = continued(backbone, tiny_scorers, PROMPTS, [process] * 3)
    theirs = by_pipeline(pipe, backbone, PROMPTS, process, guidance_scale=6.0)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (by_pipeline(pipe, backbone, PROMPTS, process, guidance_scale=1.0) - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_fine_tuned_pipeline_is_taken_as_it_is(tiny, tiny_scorers, name):
    pipe = copy.deepcopy(tiny(name).pipe)
    denoiser = pipe.transformer if name == "flux" else pipe.unet
    with torch.no_grad():
        for value in denoiser.parameters():
            value.mul_(1.05)
    pipe.set_progress_bar_config(disable=True)
    backbone = tiny(name).wrap(pipe)
    assert backbone.denoiser is denoiser
    process = process_of(backbone, 3)
    ours, _ = continued(backbone, tiny_scorers, PROMPTS, [process] * 3)
    torch.testing.assert_close(ours, by_pipeline(pipe, backbone, PROMPTS, process), atol=1e-4, rtol=1e-4)
    before = by_pipeline(tiny(name).pipe, backbone, PROMPTS, process)
    assert (before - ours).abs().max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_the_full_decoder_is_the_pipelines(tiny, tiny_scorers, name):
    backbone = tiny(name).load()
    process = process_of(backbone, 2)
    ours, _ = continued(backbone, tiny_scorers, PROMPTS, [process] * 3)
    vae = backbone.pipe.vae
    theirs = tiny(name).pipe.vae.decode(ours / vae.config.scaling_factor + (vae.config.shift_factor or 0)).sample
    torch.testing.assert_close(backbone.decode(ours), theirs.clamp(-1, 1), atol=1e-5, rtol=1e-5)


def test_sdxl_encodes_the_empty_negative_prompt_when_told_to(tiny, tiny_scorers):
    pipe = copy.deepcopy(tiny("sdxl").pipe)
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    pipe.set_progress_bar_config(disable=True)
    backbone = tiny("sdxl").wrap(pipe)
    process = process_of(backbone, 3)
    ours, _ = continued(backbone, tiny_scorers, PROMPTS, [process] * 3)
    torch.testing.assert_close(ours, by_pipeline(pipe, backbone, PROMPTS, process), atol=1e-4, rtol=1e-4)
    zeros, _ = continued(tiny("sdxl").wrap(), tiny_scorers, PROMPTS, [process] * 3)
    assert (ours - zeros).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sd15", "sd21"])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_any_level_is_what_the_hand_written_backbone_predicts(tiny, name, scheduler):
    """Above the plan's start, at it, between its first two levels, on the plan, between others, below its last."""
    import diffusers

    pipe = copy.copy(tiny(name).pipe)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    general = tiny(name).wrap(pipe)
    parts = StableDiffusionParts(
        pipe.unet, pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.scheduler, general.preview_decoder.decoder
    )
    reference = EmojiBackbone(parts, general.capabilities)
    plan = general.sigmas(50, "scheduler")
    sigma = torch.tensor([1.02 * plan[0], plan[0], (plan[0] + plan[1]) / 2, plan[7], plan[20] * 0.99, plan[49] * 0.9])
    sigma = torch.cat([sigma, sigma]).double()
    x = torch.randn(len(sigma), *general.capabilities.latent_shape, generator=torch.Generator().manual_seed(0))
    texts = [prompt.text for prompt in PROMPTS] * 4
    scale = torch.tensor([7.5, 1.0, 3.0] * 4, dtype=torch.float64)
    for _ in range(2):  # with new calls, and with waiting ones
        ours = general.predict(x, sigma, general.encode(texts), scale)
        theirs = reference.predict(x, sigma, reference.encode(texts), scale)
        # Fractional times of Euler are float32: sigma times guidance multiplies their rounding by a hundred.
        torch.testing.assert_close(ours.x0, theirs.x0, atol=1e-3, rtol=1e-3)
        assert torch.equal(ours.calls, theirs.calls)

"""Samplers that run a diffusers pipeline: equal to it, and to the engine where nothing is added; costs counted."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from addiffusion_env.backbones import BACKBONES
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import open_lane
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import NumericsError
from addiffusion_env.prompts import Prompt, keyed_generator
from addiffusion_env.samplers import make_sampler
from addiffusion_lab.pipelines.attend_excite import scaled_thresholds, subject_positions

CUP = Prompt.of("a photo of a red cup and a dog")


def base_of(backbone):
    guidance = 4.0 if backbone.capabilities.guidance else 1.0
    return ProcessConfig(steps=4, solver=backbone.capabilities.default_solver, guidance_scale=guidance)


def make(spec, backbone, scorers, prompts, seed=0):
    sampler = make_sampler(spec)
    sampler.bind(backbone, scorers)
    process = sampler.process(base_of(backbone))
    engine = Engine(backbone, scorers, solver=process.solver, decider=sampler.decide)
    return engine.run([sampler.coroutine(backbone, process, prompt, seed) for prompt in prompts])


def noise_of(backbone, prompt, seed=0):
    return open_lane(backbone, base_of(backbone), prompt, seed).latents.x


def own_ddim(pipe):
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(pipe.scheduler.config)


def counted_by_hand(module, monkeypatch):
    """Rows of every forward pass, written down by the forward sampler itself."""
    rows, forward = [], module.forward

    def noted(x, *args, **kwargs):
        rows.append(len(x))
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(module, "forward", noted)
    return rows


def test_sag_without_its_guidance_is_ddim(emoji, scorers, prompts):
    plain = make("fixed:5", emoji, scorers, prompts[:2])
    without = make("sag:5,0", emoji, scorers, prompts[:2])
    for one, other in zip(plain, without, strict=True):
        torch.testing.assert_close(one.image.tensor, other.image.tensor, atol=1e-4, rtol=0)
        assert (one.lane.nfe, one.lane.calls) == (other.lane.nfe, other.lane.calls) == (5, 10)


def euler_of_sd15(config):
    """Its class does not know set_alpha_to_one=False, which its config keeps: it ends at 0."""
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler.from_config(config)


def edited_to_v(config):
    """An edit that from_config drops, as prediction_type is at its default when the scheduler is made."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config({key: value for key, value in config.items() if key != "prediction_type"})
    scheduler.register_to_config(prediction_type="v_prediction")
    return scheduler


def exit_at_zero(config):
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(config, set_alpha_to_one=True)


@pytest.mark.parametrize("scheduler", [euler_of_sd15, edited_to_v, exit_at_zero])
def test_pipelines_land_and_predict_as_the_engine_does(weights, scorers, scheduler):
    """Seven steps do not divide a thousand levels, and the last one still ends at 0."""
    from diffusers import StableDiffusionPipeline

    own = weights("sd15")[1]
    pipe = StableDiffusionPipeline(
        **{**own.components, "scheduler": scheduler(own.scheduler.config)}, requires_safety_checker=False
    )
    backbone = BACKBONES.load("sd15").from_pipeline(pipe, preview="linear")
    [plain], [without] = make("fixed:7", backbone, scorers, [CUP]), make("sag:7,0", backbone, scorers, [CUP])
    # StableDiffusionSAGPipeline reads whole timesteps only, and Euler's lie between them.
    rounding = 2e-3 if scheduler is euler_of_sd15 else 1e-4
    torch.testing.assert_close(without.image.tensor, plain.image.tensor, atol=rounding, rtol=0)
    zero = scheduler is not edited_to_v
    assert (backbone.convention.schedule.final_sigma == 0) is zero
    assert backbone.convention.parametrisation == ("epsilon" if zero else "v_prediction")


def test_sag_is_the_pipeline_and_costs_half_as_much_again(tiny_backbone, weights, scorers, monkeypatch):
    from diffusers import StableDiffusionSAGPipeline

    backbone = tiny_backbone("sd15")
    rows = counted_by_hand(backbone.denoiser, monkeypatch)
    [episode] = make("sag:4", backbone, scorers, [CUP])
    assert (episode.lane.nfe, episode.lane.calls) == (6, 12) and sum(rows) == 12
    own = weights("sd15")[1]
    pipe = StableDiffusionSAGPipeline(**{**own.components, "scheduler": own_ddim(own)}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        CUP.text,
        latents=noise_of(backbone, CUP),
        num_inference_steps=4,
        guidance_scale=4.0,
        sag_scale=0.75,
        output_type="pt",
    ).images[0]
    torch.testing.assert_close(episode.image.tensor, theirs * 2 - 1, atol=1e-4, rtol=0)
    [plain] = make("fixed:4", backbone, scorers, [CUP])
    assert (plain.image.tensor - episode.image.tensor).abs().max() > 1e-3


def test_attend_and_excite_is_the_pipeline_and_counts_gradients_apart(tiny_backbone, weights, scorers, monkeypatch):
    from diffusers import StableDiffusionAttendAndExcitePipeline

    backbone = tiny_backbone("sd15")
    rows = counted_by_hand(backbone.denoiser, monkeypatch)
    [episode] = make("attend_excite:4", backbone, scorers, [CUP])
    assert episode.lane.calls == sum(rows) >= 4 * 3
    assert episode.lane.nfe == sum(rows) / 2
    assert 0 < episode.costs["gradient_calls"] <= rows.count(1)  # every gradient is of a pass of one row
    own = weights("sd15")[1]
    parts = {name: part for name, part in own.components.items() if name != "image_encoder"}
    parts["scheduler"] = own_ddim(own)
    pipe = StableDiffusionAttendAndExcitePipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    words = [index for index, token in pipe.get_indices(CUP.text).items() if token in ("p</w>", "g</w>")]
    theirs = pipe(
        CUP.text,
        words,  # the tiny tokenizer knows letters: where "cup" and "dog" end
        latents=noise_of(backbone, CUP),
        num_inference_steps=4,
        guidance_scale=4.0,
        max_iter_to_alter=2,
        thresholds=scaled_thresholds(4),
        attn_res=backbone.capabilities.attention_grid,
        output_type="pt",
    ).images[0]
    torch.testing.assert_close(episode.image.tensor, theirs * 2 - 1, atol=1e-3, rtol=0)


def test_subjects_are_the_last_words_of_phrases(emoji, prompts):
    tokenizer = emoji.parts.tokenizer
    for prompt, words in ((prompts[1], ["cup", "clock"]), (prompts[3], ["bus", "bear"]), (prompts[0], ["dog"])):
        ids = tokenizer(prompt.text).input_ids
        positions = subject_positions(emoji, tokenizer, prompt)
        assert [tokenizer.convert_ids_to_tokens(ids[place]).removesuffix("</w>") for place in positions] == words
    unfound = Prompt("a photo of a red cup", "p", phrases=("nowhere to be found",))
    assert subject_positions(emoji, tokenizer, unfound) == list(emoji.encode([unfound.text]).content[0])


def test_weights_of_a_samplers_own_follow_the_backbone_that_it_is_bound_to(tiny_backbone, weights, scorers):
    backbone, (folder, _) = tiny_backbone("sd15"), weights("lcm")
    sampler = make_sampler(f"lcm:1,{folder}")
    sampler.bind(backbone, scorers)
    pipe, known = sampler._pipe, sampler.fingerprint
    sampler.bind(backbone, scorers)
    assert sampler._pipe is pipe and sampler.fingerprint == known
    half = copy.copy(backbone)
    half.measured = replace(backbone.measured, dtype=torch.bfloat16)
    sampler.bind(half, scorers)
    assert sampler._pipe.unet.dtype == torch.bfloat16 and sampler.fingerprint != known


def test_lcm_is_the_pipeline_at_one_call_a_step(tiny_backbone, weights, scorers):
    backbone, (folder, pipe) = tiny_backbone("sd15"), weights("lcm")
    [episode] = make(f"lcm:3,{folder}", backbone, scorers, [CUP])
    assert (episode.lane.nfe, episode.lane.calls) == (3, 3)
    theirs = pipe(
        CUP.text,
        latents=noise_of(backbone, CUP),
        generator=keyed_generator(CUP.prompt_id, 0, "lcm"),
        num_inference_steps=3,
        output_type="pt",
    ).images[0]
    torch.testing.assert_close(episode.image.tensor, theirs * 2 - 1, atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [1, 4])
def test_turbo_takes_euler_ancestral_steps_without_guidance(tiny_backbone, weights, scorers, steps):
    backbone, (folder, pipe) = tiny_backbone("sdxl"), weights("turbo")
    [episode] = make(f"turbo:{steps},{folder}", backbone, scorers, [CUP])
    assert (episode.lane.nfe, episode.lane.calls) == (steps, steps)
    theirs = pipe(
        CUP.text,
        latents=noise_of(backbone, CUP),
        generator=keyed_generator(CUP.prompt_id, 0, "turbo"),
        num_inference_steps=steps,
        guidance_scale=0.0,
        output_type="pt",
    ).images[0]
    torch.testing.assert_close(episode.image.tensor, theirs * 2 - 1, atol=1e-4, rtol=0)


def test_a_cache_that_never_skips_is_the_plain_schedule(tiny_backbone, scorers):
    backbone = tiny_backbone("flux")
    [plain] = make("fixed:4", backbone, scorers, [CUP])
    [cached] = make("fbcache:4,0", backbone, scorers, [CUP])
    torch.testing.assert_close(plain.image.tensor, cached.image.tensor, atol=1e-4, rtol=0)
    assert (cached.lane.nfe, cached.lane.calls, cached.costs["skipped_calls"]) == (4, 4, 0)


def test_a_cache_that_always_skips_runs_one_block_of_three(tiny_backbone, scorers):
    backbone = tiny_backbone("flux")
    [plain] = make("fixed:4", backbone, scorers, [CUP])
    again = make("fbcache:4,1000", backbone, scorers, [CUP, CUP])  # each from an empty cache
    for cached in again:
        assert cached.costs["skipped_calls"] == 3 and cached.lane.calls == 4
        assert cached.lane.nfe == pytest.approx(1 + 3 / 3)
        assert (plain.image.tensor - cached.image.tensor).abs().max() > 1e-4
    assert torch.equal(again[0].image.tensor, again[1].image.tensor)
    assert not backbone.denoiser.is_cache_enabled


def test_processors_come_back_after_an_error(emoji, scorers, prompts, monkeypatch):
    before = emoji.denoiser.attn_processors
    monkeypatch.setattr(emoji.denoiser.conv_out, "forward", lambda x: torch.full_like(x[:, :4], float("nan")))
    with pytest.raises(NumericsError, match="sag:2 drew NaN"):
        make("sag:2", emoji, scorers, prompts[:1])
    monkeypatch.setattr(emoji.denoiser.mid_block, "forward", None)
    with pytest.raises(TypeError):
        make("sag:2", emoji, scorers, prompts[:1])
    assert all(emoji.denoiser.attn_processors[name] is kept for name, kept in before.items())

"""The engine reproduces the reference sampler's exact correctness, judged by the shipped detector."""

import numpy as np
import pytest
import torch

from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.episode import play
from addiffusion_env.engine.process import ProcessConfig, RefineConfig
from addiffusion_env.prompts import keyed_noise
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts, scene_prompt
from addiffusion_env.scorers.emoji_detector import EmojiDetectorScorer
from addiffusion_lab.emoji_training.layouts import sample_scenes

NO_REFINE = RefineConfig(enabled=False, maps="none", region="whole")


def verdicts(emoji, scorers, prompts, steps, spacing, lanes=32):
    process = ProcessConfig(steps=steps, spacing=spacing, guidance_scale=4.0, refine=NO_REFINE)
    engine = Engine(emoji, scorers, decider=lambda requests: [0] * len(requests))
    detector = EmojiDetectorScorer.from_pretrained()
    coroutines = (play(emoji, process, prompt, seed=0, looks=False) for prompt in prompts)
    right = np.zeros(len(prompts))
    for index, episode in engine.stream(coroutines, max_lanes=lanes):
        right[index] = float(detector.score(episode.image.tensor[None], [prompts[index]])[0])
    return right


@pytest.fixture(scope="module")
def reference_prompts():
    """The 2,048 grammar prompts of the reference code."""
    return [scene_prompt(scene) for scene in sample_scenes(2048, seed=999)[0]]


@pytest.mark.slow
def test_ddim_50_reproduces_the_reference(emoji, scorers, reference_prompts):
    """DDIM-50 (leading) at guidance 4: 0.859 with the reference code. Most of an hour on one core."""
    assert verdicts(emoji, scorers, reference_prompts, 50, "leading").mean() == pytest.approx(0.86, abs=0.02)


@pytest.mark.slow
def test_ddim_50_draws_the_same_prompts_wrong(emoji, scorers, reference_prompts):
    """The first 64 of them: the same 14 images are wrong.

    A plain diffusers loop has the same verdicts on the first 32. Prompts and noise are fixed, so only rounding changes
    a verdict, and only one on the edge: none from AVX2 to AVX-512. Guidance 1.5 changes four, which hardly changes the
    share.
    """
    wrong = np.flatnonzero(verdicts(emoji, scorers, reference_prompts[:64], 50, "leading") == 0)
    assert len(set(wrong) ^ {0, 6, 11, 14, 15, 20, 24, 30, 32, 45, 46, 50, 53, 55}) <= 2, wrong


@pytest.mark.slow
def test_a_smaller_sample_is_in_keeping(emoji, scorers):
    """40 single objects and pairs in 6 trailing steps: 0.95 and 0.90 in the reference's table, fixed seeds here."""
    prompts = EmojiPrompts(split="all", tasks=["single_object", "two_object"]).take(40, seed=5)
    assert verdicts(emoji, scorers, prompts, 6, "trailing").mean() >= 0.8


def test_images_of_other_prompts_are_judged_wrong(emoji, scorers):
    prompts = EmojiPrompts(split="all", tasks=["two_object"]).take(8, seed=5)
    shuffled = [
        type(p)(q.text, p.prompt_id, p.task, requirements=p.requirements)
        for p, q in zip(prompts, prompts[::-1], strict=True)
    ]
    assert not verdicts(emoji, scorers, shuffled, 4, "trailing").any()


@pytest.mark.numeric
@torch.no_grad()
def test_the_engine_equals_a_plain_diffusers_loop(emoji, scorers, prompts):
    """DDIM, leading, guidance 4, as in the reference: the same latents from the same noise."""
    chosen = prompts[:3]
    scheduler = emoji.parts.scheduler
    scheduler.set_timesteps(10)
    x = torch.stack([keyed_noise(prompt.prompt_id, 0, emoji.capabilities.latent_shape) for prompt in chosen])
    encoded = emoji.encode([prompt.text for prompt in chosen]).tensors
    states = torch.cat([encoded["negative"], encoded["text"]])
    for timestep in scheduler.timesteps:
        negative, text = emoji.denoiser(torch.cat([x, x]), timestep, encoder_hidden_states=states).sample.chunk(2)
        x = scheduler.step(negative + 4.0 * (text - negative), timestep, x).prev_sample
    process = ProcessConfig(steps=10, spacing="leading", guidance_scale=4.0, refine=NO_REFINE)
    engine = Engine(emoji, scorers, decider=lambda requests: [0] * len(requests))
    found = engine.run([play(emoji, process, prompt, seed=0, looks=False) for prompt in chosen])
    torch.testing.assert_close(torch.cat([episode.lane.latents.x for episode in found]), x, atol=1e-4, rtol=0)

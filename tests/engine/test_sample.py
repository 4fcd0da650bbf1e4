"""The sampling loop of the documentation gives the same images as the engine."""

import torch

from addiffusion_env.engine.coroutines import advance, finished
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import open_lane
from addiffusion_env.engine.process import REFINE_PRESETS, ProcessConfig
from addiffusion_env.engine.sample import sample


def test_the_loop_gives_the_images_of_the_engine(emoji, scorers, prompts):
    defaults = emoji.capabilities
    process = ProcessConfig(
        steps=4,
        spacing=defaults.default_spacing,
        solver=defaults.default_solver,
        guidance_scale=defaults.default_guidance,
        refine=REFINE_PRESETS["off"],
    )

    def coroutine(prompt):
        lane = open_lane(emoji, process, prompt, 7)
        while lane.remaining:
            lane = yield from advance(process, lane)
        return (yield from finished(lane)).tensor

    by_engine = Engine(emoji, scorers, process.solver).run([coroutine(prompt) for prompt in prompts[:3]])
    looped = sample(emoji, prompts[:3], steps=4, seed=7)
    torch.testing.assert_close(looped, torch.stack(by_engine), atol=1e-5, rtol=1e-5)
    assert (looped[0] - sample(emoji, prompts[:1], steps=4, seed=8)[0]).abs().max() > 0.1
    assert (looped[0] - sample(emoji, prompts[:1], steps=4, guidance_scale=1.0, seed=7)[0]).abs().max() > 0.01

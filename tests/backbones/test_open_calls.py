"""Open calls: torch's state is separate for each call, dropped calls end cleanly, threads do not share them."""

from __future__ import annotations

import gc
import threading
from contextlib import ExitStack

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch.utils._pytree import register_pytree_node
from zoo import ZOO

from addiffusion_env import AdaptivePipeline
from addiffusion_env.backbones.calls.joining import CONSTANT, learn, spread
from addiffusion_env.backbones.calls.networks import holds_state
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.prompts import Prompt

SETTINGS = {"num_inference_steps": 3, "height": 16, "width": 16}
CONTEXTS = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("cpu"),
}


def torch_state():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch._C._len_torch_function_stack(),
    )


class OwnPipeline(StableDiffusionPipeline):
    """A user's pipeline that computes under its own contexts and records when a call has ended."""

    contexts: tuple[str, ...] = ()
    ended: list[str] = []  # noqa: RUF012
    inside: list[tuple] = []  # noqa: RUF012

    def __call__(self, prompt=None, num_inference_steps=3, generator=None, output_type="pil", **kwargs):
        try:
            with ExitStack() as stack:
                for name in self.contexts:
                    stack.enter_context(CONTEXTS[name]())
                made = super().__call__(
                    prompt,
                    num_inference_steps=num_inference_steps,
                    generator=generator,
                    output_type=output_type,
                    callback_on_step_end=self.note,
                    **kwargs,
                )
                self.inside.append(torch_state())
                return made
        finally:
            self.ended.append(str(prompt))

    def note(self, pipe, step, time, values):
        self.inside.append(torch_state())
        return values


@pytest.fixture
def own():
    kind = type("Own", (OwnPipeline,), {"ended": [], "inside": []})
    pipe = kind(**ZOO["sd15"]().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("contexts", [("inference_mode",), ("autocast",), ("device",), ("autocast", "inference_mode")])
def test_torch_state_stays_with_its_call(own, contexts):
    type(own).contexts = contexts
    before = torch_state()
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    wanted = [
        own(text, generator=generator, output_type="pt", **SETTINGS).images[0].float()
        for text, generator in zip(("a dog", "a red cup"), generators, strict=True)
    ]
    inside = set(own.inside)
    own.inside.clear()
    pipe = AdaptivePipeline(PipelineBackbone(own, SETTINGS), "continue")
    assert torch_state() == before
    seen = []

    def after_each_step(*arguments):
        seen.append(torch_state())

    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    made = pipe(
        ["a dog", "a red cup"], generator=generators, output_type="pt", callback_on_step_end=after_each_step
    ).images
    # The engine itself evaluates without gradients; nothing else of the calls' state is seen outside of them.
    assert set(seen) <= {before, (False, *before[1:])} and torch_state() == before
    assert set(own.inside) == inside
    rounding = 0.03 if "autocast" in contexts else 0.0021
    for image, own_image in zip(made, wanted, strict=True):
        assert (image - own_image).abs().max() <= rounding
    grown = torch.ones(2, requires_grad=True)
    (grown * 2).sum().backward()
    assert grown.grad is not None


def test_a_dropped_lane_closes_its_call(own):
    backbone = PipelineBackbone(own, SETTINGS)
    own.ended.clear()
    conditioning, latents, _ = backbone.begin([(Prompt.of("a dog that is dropped"), 0)], 3, "scheduler")
    backbone.predict(latents.x, latents.sigma, conditioning, torch.tensor([7.5], dtype=torch.float64))
    assert own.ended == []
    del conditioning
    gc.collect()
    assert own.ended == ["a dog that is dropped"]


def test_lanes_continue_in_another_thread(own):
    backbone = PipelineBackbone(own, SETTINGS)
    scale = torch.tensor([7.5], dtype=torch.float64)
    conditioning, latents, [levels] = backbone.begin([(Prompt.of("a dog"), 0)], 3, "scheduler")
    after = torch.tensor([levels[1]], dtype=torch.float64)
    here = backbone.predict(latents.x, latents.sigma, conditioning, scale)
    moved = backbone.scheduler_step(latents, here, conditioning, after)
    found = {}

    def go_on(name):
        found[name] = backbone.predict(moved.x, moved.sigma, conditioning, scale).x0

    other = threading.Thread(target=go_on, args=("there",))
    other.start()
    other.join()
    go_on("here")
    torch.testing.assert_close(found["there"], found["here"], atol=1e-6, rtol=1e-6)


class Cache:
    """Keys of a text, which torch can take apart, as it can transformers' caches once one was exported."""

    def __init__(self):
        self.keys = [torch.zeros(1, 2)]


register_pytree_node(Cache, lambda cache: (cache.keys, None), lambda keys, _: Cache())


def test_a_cache_in_the_arguments_is_not_taken_apart():
    """It belongs to one image: it is neither joined with others nor copied."""
    cache = Cache()
    assert holds_state(((cache,), {}))
    assert spread(((cache,), {}))[0][0][0] is cache
    assert list(learn((cache, torch.zeros(1, 3)), (Cache(), torch.zeros(2, 3))).kinds) == [CONSTANT, 0]

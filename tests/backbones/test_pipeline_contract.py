"""One backbone for every pipeline: images equal those of the pipeline, alone and joined with others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from zoo import REFUSED, ZOO
from zoo.test_zoo import counted

from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.engine.coroutines import act, advance, finished
from addiffusion_env.engine.lane import restore_lane
from addiffusion_env.engine.process import REFINE_PRESETS
from addiffusion_env.engine.sample import sample
from addiffusion_env.errors import CapabilityError
from addiffusion_env.samplers import make_sampler
from addiffusion_lab.tiny_pipelines.contract import Case

NOT_JOINED = {
    "omnigen": "depends on the number of images",
    "prx": "cannot draw two images",
    "prx_pixel": "cannot draw two images",
    "dreamlite": "cannot draw two images",
    "cascade_decoder": "cannot draw two images",
}
"""Pipelines whose network calls are not joined, and the reason in the warning."""

TASKS = ("text-to-image", "image-to-image", "inpainting", "controlnet")
TAKES_NO_PROMPT = "kandinsky22_decoder"
"""The second stage of a two-stage pipeline: its input is the output of the first, and it is refused."""
MOMENTUM = "hunyuan_image"
"""Its guider has state across steps inside the open call: a restored lane restarts that state."""
BACKBONES = {name: builder for name, builder in ZOO.items() if builder.task in TASKS}
ENTRIES = [
    pytest.param(name, id=name, marks=() if builder.fast else pytest.mark.slow) for name, builder in BACKBONES.items()
]


@pytest.fixture(scope="module")
def cases():
    made: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in made:
            made.clear()  # one at a time in memory
            made[name] = Case(name)
        return made[name]

    return get


def networks_of(case):
    """The networks that run in a step; a MultiControlNet runs several."""
    parts = {getattr(case.pipe, name) for name in case.builder.denoisers}
    return [network for part in parts for network in getattr(part, "nets", [part])]


def rows_of_a_step(case):
    """Rows of all networks; the builder counts one of a MultiControlNet, in the first of its calls."""
    calls = case.builder.calls
    return sum(calls) + calls[0] * (len(networks_of(case)) - len(set(case.builder.denoisers)))


@pytest.mark.parametrize("name", ENTRIES, scope="module")
def test_it_draws_what_the_pipeline_draws(cases, name):
    case = cases(name)
    wanted = [case.drawn(row) for row in range(3)]
    assert (wanted[0] - case.drawn(1, seed=0)).abs().max() > 1e-4  # the prompt changes the image, for the same noise
    networks = networks_of(case)
    lane, alone = case.alone()
    torch.testing.assert_close(alone, wanted[0], atol=1e-5, rtol=1e-5)
    with counted(networks) as rows:
        lane, again = case.alone()
    assert sum(rows) == lane.calls == rows_of_a_step(case) * (len(lane.levels) - 1)
    assert lane.nfe == len(lane.levels) - 1
    assert torch.equal(alone, again)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        looped = sample(case.backbone, [case.prompt(0)], case.process.steps)
    torch.testing.assert_close(looped, wanted[0], atol=1e-5, rtol=1e-5)
    for image, own in zip(case.joined(), wanted, strict=True):
        torch.testing.assert_close(image, own, atol=1e-4, rtol=1e-4)
    if name in NOT_JOINED:
        assert not case.backbone.evaluator.networks.joins
        assert NOT_JOINED[name] in case.not_joined
    else:
        assert case.backbone.evaluator.networks.joins and not case.not_joined
        assert case.backbone.measured.difference <= 1e-4


@pytest.mark.parametrize("name", ENTRIES, scope="module")
def test_an_early_exit_ends_as_the_pipeline_does(cases, name):
    """After one step, the clean prediction equals the result of the pipeline's own call when its loop ends there."""
    case = cases(name)
    lane, image, own = case.early_exit()
    assert lane.calls == rows_of_a_step(case)  # nothing was spent on the exit
    assert torch.equal(lane.latents.x, lane.x0)
    torch.testing.assert_close(image, own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ENTRIES, scope="module")
def test_a_lane_is_a_value(cases, name):
    """A snapshot restored in another backbone gives the same image; a resample finishes as well."""
    case = cases(name)

    def first_step():
        return (yield from advance(case.process, case.lane(0)))

    def rest(lane):
        while lane.remaining:
            lane = yield from advance(case.process, lane)
        return (yield from finished(lane)).tensor[None]

    lane = case.engine.run([first_step()])[0]
    restored = restore_lane(case.backbone, lane.state())
    restored = replace(restored, conditioning=lane.conditioning)  # the caller passes the arguments again
    once, twice = case.engine.run([rest(lane)])[0], case.engine.run([rest(restored)])[0]
    if name != MOMENTUM:
        torch.testing.assert_close(once, twice, atol=1e-6, rtol=1e-6)
    again = replace(case.process, refine=REFINE_PRESETS["resample"])

    def resampled():
        lane = yield from advance(again, case.lane(0))
        lane = yield from act(case.backbone, again, lane, 2)
        while lane.remaining:
            lane = yield from advance(again, lane)
        return lane, (yield from finished(lane)).tensor[None]

    lane, other = case.engine.run([resampled()])[0]
    assert other.isfinite().all() and lane.refinements == 1
    assert (other - once).abs().max() > 1e-4


def test_a_pipeline_without_prompts_is_refused():
    with pytest.raises(CapabilityError, match="takes no prompt\n  -> pass a text-to-image pipeline"):
        PipelineBackbone(REFUSED[TAKES_NO_PROMPT]())


def test_continue_is_the_pipelines_own_number_of_steps():
    case = Case("sd15")
    sampler = make_sampler("continue")
    assert sampler.name == "continue"
    assert sampler.process(case.process).steps == case.process.steps
    assert sampler.process(case.process).refine == REFINE_PRESETS["off"]


def test_at_least_42_text_to_image_classes():
    kinds = {name for name, builder in ZOO.items() if builder.task == "text-to-image"}
    assert len(kinds) >= 42


def test_inpainting_in_tokens_has_places_in_the_image():
    """Where the mask keeps the image, latents do not reach the decoder; the layout is learned nevertheless."""
    backbone = Case("flux_inpaint").backbone
    assert backbone.capabilities.latent_shape == (4, 8, 8) and backbone.capabilities.previews
    inner = torch.arange(256.0).reshape(1, *backbone.measured.layout.inner)
    assert torch.equal(backbone.measured.layout.back(backbone.measured.layout.outer(inner)), inner)


def test_a_pipeline_that_refuses_a_guidance_of_zero_is_still_guided():
    capabilities = Case("prx").backbone.capabilities
    assert capabilities.guidance and capabilities.network_calls == (1, 2) and capabilities.default_guidance == 3

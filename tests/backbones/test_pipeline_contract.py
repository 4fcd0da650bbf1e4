"""One backbone for every pipeline: alone it is the pipeline, joined with other images it is still the pipeline."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from zoo import ZOO
from zoo.test_zoo import counted

from addiffusion_env.backbones.calls.measured import image_of
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.backbones.solvers import SCHEDULER
from addiffusion_env.baselines import make_method
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import open_lane, restore_lane
from addiffusion_env.engine.process import REFINE_PRESETS, ProcessConfig
from addiffusion_env.engine.programs import act, advance, ask, finished, land
from addiffusion_env.errors import CapabilityError
from addiffusion_env.prompts.base import Prompt
from addiffusion_env.scorers.look import NoScorers

TEXTS = ("a red cup left of the dog", "a photo of the cat on a sofa", "two dogs")
NOT_JOINED = {
    "omnigen": "other answers for several images",
    "prx": "cannot draw two images",
    "prx_pixel": "cannot draw two images",
    "dreamlite": "cannot draw two images",
    "cascade_decoder": "cannot draw two images",
}
"""Pipelines whose network calls are not joined, and what the warning says."""

TASKS = ("text-to-image", "image-to-image", "inpainting", "controlnet")
TAKES_NO_PROMPT = "kandinsky22_decoder"
"""The second of two pipelines: what the first makes of a prompt is its input, and it is refused."""
MOMENTUM = "hunyuan_image"
"""Its guider carries on from step to step inside the open call: a lane that is restored begins that anew."""
BACKBONES = {name: builder for name, builder in ZOO.items() if builder.task in TASKS and name != TAKES_NO_PROMPT}
ENTRIES = [
    pytest.param(name, id=name, marks=() if builder.fast else pytest.mark.slow) for name, builder in BACKBONES.items()
]


class Case:
    """A tiny pipeline, its backbone, and the images that the pipeline itself draws."""

    def __init__(self, name: str) -> None:
        self.builder = ZOO[name]
        self.pipe = self.builder()
        given = self.builder.arguments(TEXTS[0])
        arguments = {key: value for key, value in given.items() if key not in ("prompt", "output_type")}
        with warnings.catch_warnings(record=True) as self.warned:
            warnings.simplefilter("always")
            self.backbone = PipelineBackbone(self.pipe, arguments)
        capabilities = self.backbone.capabilities
        self.process = ProcessConfig(
            steps=arguments["num_inference_steps"],
            spacing=SCHEDULER,
            solver=SCHEDULER,
            guidance_scale=capabilities.default_guidance,
            network_calls=capabilities.network_calls,
            refine=REFINE_PRESETS["off"],
        )
        self.engine = Engine(self.backbone, NoScorers(), solver=SCHEDULER)

    def prompt(self, row: int) -> Prompt:
        given = self.builder.inputs(TEXTS[row])
        text = given.pop("prompt", TEXTS[row])
        generator = torch.Generator().manual_seed(row)
        return replace(Prompt.of(text), arguments={**given, "generator": generator})

    def drawn(self, row: int) -> torch.Tensor:
        """(1, 3, H, W) in [-1, 1], by the pipeline's own call."""
        return image_of((self.builder.draw(self.pipe, TEXTS[row], seed=row),))

    def lane(self, row: int):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # as Builder.draw: one pipeline encodes its image with torch's own generator
            return open_lane(self.backbone, self.process, self.prompt(row), 0)

    def program(self, row: int, delay: int = 0):
        """One image, begun after ``delay`` evaluations that move nothing."""
        lane = self.lane(row)
        for _ in range(delay):
            yield ask(self.process, lane, lane.latents, None)
        while lane.remaining:
            lane = yield from advance(self.process, lane)
        picture = yield from finished(lane)
        return lane, picture.image[None]


@pytest.fixture(scope="module")
def cases():
    made: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in made:
            made.clear()  # one at a time in memory
            made[name] = Case(name)
        return made[name]

    return get


@pytest.mark.parametrize("name", ENTRIES)
def test_it_draws_what_the_pipeline_draws(cases, name):
    case = cases(name)
    wanted = [case.drawn(row) for row in range(3)]
    assert (wanted[0] - wanted[1]).abs().max() > 1e-4  # two prompts differ
    networks = {getattr(case.pipe, part) for part in case.builder.denoisers}
    lane, alone = case.engine.run([case.program(0)])[0]
    torch.testing.assert_close(alone, wanted[0], atol=1e-5, rtol=1e-5)
    with counted(networks) as rows:
        lane, again = case.engine.run([case.program(0)])[0]
    assert sum(rows) == lane.calls == sum(case.builder.calls) * (len(lane.levels) - 1)
    assert lane.nfe == len(lane.levels) - 1
    assert torch.equal(alone, again)
    joined = case.engine.run([case.program(row, delay=row) for row in range(3)])
    for (_, image), own in zip(joined, wanted, strict=True):
        torch.testing.assert_close(image, own, atol=1e-4, rtol=1e-4)
    said = [str(item.message) for item in case.warned if "not joined" in str(item.message)]
    if name in NOT_JOINED:
        assert not case.backbone.evaluator.networks.joins
        assert len(said) == 1 and NOT_JOINED[name] in said[0]
    else:
        assert case.backbone.evaluator.networks.joins and not said
        assert case.backbone.measured.difference <= 1e-4


@pytest.mark.parametrize("name", ENTRIES)
def test_an_early_exit_ends_as_the_pipeline_does(cases, name, monkeypatch):
    """After one step, from the clean prediction: what the pipeline's own call makes of it when its loop ends there."""
    case = cases(name)
    process = replace(case.process, landing_steps=0)

    def stopped():
        lane = yield from advance(process, case.lane(0))
        clean = lane.x0
        lane = yield from land(case.backbone, process, lane)
        picture = yield from finished(lane)
        return clean, lane, picture.image[None]

    clean, lane, image = case.engine.run([stopped()])[0]
    assert lane.calls == sum(case.builder.calls)  # nothing was spent on the exit
    assert torch.equal(lane.latents.x, clean)
    backbone, kind = case.backbone, type(case.pipe.scheduler)
    scale = backbone.convention.scale(float(backbone.plan_of(lane.conditioning.requests[0]).levels[-1]))
    last = backbone.measured.layout.back(clean) * scale

    @functools.wraps(kind.step)
    def step(self, *args, return_dict=True, **kwargs):
        self._step_index = 1 + (getattr(self, "_step_index", None) or 0)
        return SimpleNamespace(prev_sample=last) if return_dict else (last, last)

    monkeypatch.setattr(kind, "step", step)
    torch.testing.assert_close(image, case.drawn(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_lane_is_a_value(cases, name):
    """Snapshot in the middle, restored in another backbone's hands, it ends as the same image; a resample ends too."""
    case = cases(name)

    def first_step():
        return (yield from advance(case.process, case.lane(0)))

    def rest(lane):
        while lane.remaining:
            lane = yield from advance(case.process, lane)
        return (yield from finished(lane)).image[None]

    lane = case.engine.run([first_step()])[0]
    restored = restore_lane(case.backbone, lane.state())
    restored = replace(restored, conditioning=lane.conditioning)  # its arguments are the caller's to give again
    once, twice = case.engine.run([rest(lane)])[0], case.engine.run([rest(restored)])[0]
    if name != MOMENTUM:
        torch.testing.assert_close(once, twice, atol=1e-6, rtol=1e-6)
    again = replace(case.process, refine=REFINE_PRESETS["restart"])

    def resampled():
        lane = yield from advance(again, case.lane(0))
        lane = yield from act(case.backbone, again, lane, 2)
        while lane.remaining:
            lane = yield from advance(again, lane)
        return lane, (yield from finished(lane)).image[None]

    lane, other = case.engine.run([resampled()])[0]
    assert other.isfinite().all() and lane.refinements == 1
    assert (other - once).abs().max() > 1e-4


def test_a_pipeline_without_prompts_is_refused():
    with pytest.raises(CapabilityError, match="takes no prompt\n  -> pass a text-to-image pipeline"):
        PipelineBackbone(ZOO[TAKES_NO_PROMPT]())


def test_continue_is_the_pipelines_own_number_of_steps():
    case = Case("sd15")
    method = make_method("continue")
    assert method.name == "continue"
    assert method.process(case.process).steps == case.process.steps
    assert method.process(case.process).refine == REFINE_PRESETS["off"]


def test_at_least_42_text_to_image_classes():
    kinds = {name for name, builder in ZOO.items() if builder.task == "text-to-image"}
    assert len(kinds) >= 42

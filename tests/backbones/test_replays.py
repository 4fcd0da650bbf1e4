"""Lanes replay their pipeline's loop once it is known, and their images equal those of the pipeline."""

from __future__ import annotations

import gc

import diffusers
import pytest
import torch
from zoo import ZOO
from zoo.compare import OTHER, PROMPT, ROUNDING, difference, own_image

from addiffusion_env import AdaptivePipeline
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_lab.tiny_pipelines import tasks
from addiffusion_lab.tiny_pipelines.contract import Case


@pytest.fixture
def one_by_one(monkeypatch):
    """Counts the steps that go through a pipeline's own call."""
    from addiffusion_env.backbones.calls.evaluator import Evaluator

    brought, own = [], Evaluator._brought

    def counted(self, evaluation):
        brought.append(evaluation.index)
        return own(self, evaluation)

    monkeypatch.setattr(Evaluator, "_brought", counted)
    return brought


@pytest.mark.parametrize("name", ["sd15", "flux2_klein"])
def test_known_steps_run_without_the_pipelines_loop(name, one_by_one):
    case = Case(name)
    for _ in range(2):
        case.joined()
    one_by_one.clear()
    for row, image in enumerate(case.joined()):
        torch.testing.assert_close(image, case.drawn(row), atol=1e-4, rtol=1e-4)
    assert not one_by_one


def test_a_scheduler_that_draws_noise_steps_lane_by_lane():
    case = Case("sd15")
    case.pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(case.pipe.scheduler.config)
    case.backbone.refresh()
    for _ in range(3):
        images = case.joined()
    for row, image in enumerate(images):
        torch.testing.assert_close(image, case.drawn(row), atol=1e-4, rtol=1e-4)
    assert not any(known is not None and known.proven for known in case.backbone.steps._known.values())


def test_what_is_kept_of_an_image_with_other_settings_does_not_grow_with_its_steps():
    """Every control image is a setting of its own; a ControlNet's residuals are many times the size of its latents."""
    given = {
        key: value
        for key, value in ZOO["sd15_controlnet"].arguments("a cup").items()
        if key not in ("prompt", "output_type")
    }
    adaptive = AdaptivePipeline(PipelineBackbone(ZOO["sd15_controlnet"](), given), "continue")

    def kept(seed, steps):
        adaptive(
            "a cup", image=[tasks.image(seed)], num_inference_steps=steps, generator=torch.Generator().manual_seed(0)
        )
        gc.collect()
        return sum(part.numel() for part in gc.get_objects() if type(part) is torch.Tensor)

    gc.freeze()  # what other tests have loaded is not searched
    numbers = [kept(seed, steps) for seed, steps in enumerate((4, 12, 4, 4, 12, 12))]
    few, many = numbers[3] - numbers[2], numbers[5] - numbers[4]
    assert many - few < 1000


def test_an_image_argument_is_known_by_its_content():
    """Not by its address: another image may have that later, or the same one be drawn on."""
    pipe, builder = ZOO["sd15_pix2pix"](), ZOO["sd15_pix2pix"]
    given = {key: value for key, value in builder.arguments("").items() if key not in ("prompt", "output_type")}
    adaptive = AdaptivePipeline(PipelineBackbone(pipe, given), "continue")
    picture, texts = tasks.image(5), [PROMPT, OTHER]

    def drawn():
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        return adaptive(texts, image=[picture] * 2, generator=generators, output_type="pt").images

    for _ in range(3):
        before = drawn()
    picture.paste(tasks.image(77))
    for seed, (image, text) in enumerate(zip(drawn(), texts, strict=True)):
        assert difference(image, own_image(pipe, {**given, "image": picture}, text, seed)) <= ROUNDING
        assert difference(image, before[seed]) > 10 * ROUNDING


def test_another_negative_prompt_in_a_call_of_its_own_is_followed():
    """The first network call reads the prompt only, the second the negative prompt, which other lanes shared so far."""
    pipe, builder = ZOO["qwen_image"](), ZOO["qwen_image"]
    given = {key: value for key, value in builder.arguments("").items() if key not in ("prompt", "output_type")}
    given |= {"true_cfg_scale": 9.0, "negative_prompt": "blue"}
    adaptive = AdaptivePipeline(PipelineBackbone(pipe, given), "continue")

    def drawn(**more):
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        return adaptive([PROMPT, OTHER], generator=generators, output_type="pt", **more).images

    for _ in range(4):
        before = drawn()
    for seed, (image, text) in enumerate(zip(drawn(negative_prompt="a large dog"), (PROMPT, OTHER), strict=True)):
        assert difference(image, own_image(pipe, {**given, "negative_prompt": "a large dog"}, text, seed)) <= ROUNDING
        assert difference(image, before[seed]) > 2 * ROUNDING

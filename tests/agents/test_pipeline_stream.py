"""Streams, traces and callbacks, on tiny pipelines with random weights in diffusers' own classes."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback

from addiffusion_env import AdaptivePipeline
from addiffusion_env.backbones import BACKBONES
from addiffusion_env.engine.process import REFINE_PRESETS, ProcessConfig
from addiffusion_env.errors import AdDiffusionError, CapabilityError, ConfigError, PromptError
from addiffusion_env.scorers.image_scores import NoScorers
from addiffusion_lab.tiny_pipelines.backbones import BUILDERS

WORDS = ("dog", "cat", "cup", "sofa")
PROCESS = ProcessConfig(steps=6, guidance_scale=2.0, early_exit_steps=1, refine=REFINE_PRESETS["off"])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return BUILDERS["sd15"](tmp_path_factory.mktemp("sd") / "pipeline")


@pytest.fixture(scope="module")
def backbone(loaded):
    return BACKBONES.load("sd15").from_pipeline(loaded, preview="linear")


@pytest.fixture(scope="module")
def pipe(backbone):
    return AdaptivePipeline(backbone, "random:0.3", PROCESS)


def texts(count):
    return [f"a photo of {number} {WORDS[number % 4]}" for number in range(count)]


# ---- around loaded pipelines


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_around_a_loaded_pipeline_no_scorer_is_needed(tmp_path, name):
    loaded = BUILDERS[name](tmp_path)
    pipe = AdaptivePipeline(loaded, "fixed:2")
    assert pipe.backbone.name == "diffusers" and isinstance(pipe.scorers, NoScorers)
    assert pipe.backbone.denoiser is loaded.unet
    out = pipe("a red cup", seeds=3, output_type="np", num_images_per_prompt=2)
    assert len(out.images) == 2 and out.nfe.tolist() == [2, 2]
    assert np.abs(out.images[0] - out.images[1]).max() > 0


def test_around_a_loaded_flux_pipeline(tmp_path):
    loaded = BUILDERS["flux"](tmp_path)
    whole = AdaptivePipeline(loaded, "fixed:2")
    assert whole.backbone.capabilities.image_size == (16, 16) and whole.backbone.capabilities.default_steps == 28
    schnell = BACKBONES.load("flux").from_pipeline(loaded, image_size=32)
    assert schnell.capabilities.default_steps == 4
    assert AdaptivePipeline(schnell, "fixed:2")("a red cup", output_type="pt").images.shape == (1, 3, 32, 32)


def test_a_pipeline_of_another_class_is_refused(tmp_path):
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(16,),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    with pytest.raises(CapabilityError, match="a DDIMPipeline takes no prompt\n  -> pass a text-to-image pipeline"):
        AdaptivePipeline(DDIMPipeline(unet, DDIMScheduler()), "fixed:2")


def test_a_policy_for_other_embeddings_is_refused(backbone):
    with pytest.raises(ConfigError, match="its calibrator reads text embeddings of 128 numbers; here they have 0"):
        AdaptivePipeline(backbone, "emoji", scorers=NoScorers())


def test_a_trained_policy_brings_its_own_process(emoji):
    with pytest.raises(ConfigError, match="only supports the process that it was trained on"):
        AdaptivePipeline(emoji, "emoji", PROCESS)


def test_another_model_for_a_policy(loaded, emoji):
    assert AdaptivePipeline.from_pretrained("emoji", backbone=emoji).backbone is emoji
    pipe = AdaptivePipeline.from_pretrained("emoji", policy="fixed:2", backbone=loaded)
    assert pipe.backbone.pipe is loaded and isinstance(pipe.scorers, NoScorers)


# ---- streams


def test_lanes_stay_busy_on_a_queue_of_ten_times_the_lanes(pipe):
    stream = pipe.stream(texts(80), max_lanes=8)
    made = list(stream)
    assert sorted(image.index for image in made) == list(range(80))
    assert len({image.nfe for image in made}) > 2  # lanes end at different times
    counters = stream.counters
    assert counters.queued_utilisation > 0.95 and counters.queued_capacity > 0.75 * counters.capacity
    # The rest is the end of the queue, where images of one to six evaluations run out.
    assert stream.utilisation == counters.evaluations / (8 * counters.denoiser_batches) > 0.8
    assert counters.evaluations == sum(image.nfe for image in made)
    assert counters.decodes == 80 and counters.decode_batches <= 25  # fours, apart from the end of the queue


def test_equal_schedules_leave_no_lane_idle(backbone):
    stream = AdaptivePipeline(backbone, "fixed:2", PROCESS).stream(texts(40), max_lanes=4)
    assert len(list(stream)) == 40 and stream.utilisation == 1


def test_a_streamed_image_is_the_called_one_whatever_its_neighbours(pipe):
    prompts = texts(9)
    called = pipe(prompts, seeds=range(9), output_type="np")
    for ordered, lanes in ((True, 2), (False, 5)):
        made = list(pipe.stream(prompts, seeds=range(9), output_type="np", ordered=ordered, max_lanes=lanes))
        order = [image.index for image in made]
        assert order == sorted(order) if ordered else order != sorted(order)
        for image in made:
            assert image.actions == called.actions[image.index] and image.seed == image.index
            np.testing.assert_allclose(image.image, called.images[image.index], atol=1 / 255 + 1e-6)


def test_prompts_and_seeds_are_taken_when_there_is_a_lane(pipe):
    taken = []
    prompts = (taken.append(number) or f"a photo of {number}" for number in itertools.count())
    stream = pipe.stream(prompts, seeds=itertools.count(), max_lanes=3, ordered=True)
    first = list(itertools.islice(stream, 4))
    assert [image.seed for image in first] == [0, 1, 2, 3]
    assert len(taken) < 20
    stream.close()
    assert list(stream) == []


def test_what_is_wrong_on_the_way_is_said_by_the_iterator(pipe):
    stream = pipe.stream(iter(texts(3)), seeds=iter([1, 2]))
    with pytest.raises(ConfigError, match="the seeds ended after 2 images"):
        list(stream)
    assert [image.seed for image in pipe.stream(iter(texts(2)), seeds=np.array([4, 5]), ordered=True)] == [4, 5]
    with pytest.raises(PromptError):
        list(pipe.stream(iter(["a dog", "word " * 100])))
    with pytest.raises(ConfigError, match="takes no argument height\n  -> give arguments of the pipeline where"):
        pipe.stream(["a dog"], height=16)
    assert list(pipe.stream(iter([]))) == []


# ---- traces


def test_a_trace_holds_every_decision(pipe):
    out = pipe(texts(3), seeds=[4, 5, 6], return_trace=True)
    assert pipe(texts(1)).trace is None
    for trace, actions, nfe in zip(out.trace, out.actions, out.nfe, strict=True):
        assert [decision.action for decision in trace.decisions] == actions
        assert trace.nfe == nfe and trace.network_calls == 2 * nfe
        first, *later = trace.decisions
        assert first.preview is None and first.nfe == 0 and np.isnan(first.preference) and first.probabilities is None
        for before, after in itertools.pairwise(trace.decisions):
            assert after.sigma < before.sigma and after.nfe == before.nfe + 1
        for decision in later:
            assert decision.preview.shape == (16, 16, 3) and decision.preview.dtype == np.uint8


def test_a_trained_policy_is_traced_with_its_probabilities():
    pipe = AdaptivePipeline.from_pretrained("emoji")
    plain = pipe("a photo of a dog", seeds=2)
    traced = pipe("a photo of a dog", seeds=2, return_trace=True)
    assert traced.actions == plain.actions and traced.nfe.tolist() == plain.nfe.tolist()
    [trace] = traced.trace
    for decision in trace.decisions:
        assert decision.probabilities.sum() == pytest.approx(1)
        assert decision.action == decision.probabilities.argmax()
    later = [decision for decision in trace.decisions if decision.preview is not None]
    assert later and all(np.isfinite([decision.preference, decision.clip_score]).all() for decision in later)
    assert np.isfinite(trace.preference) and later[-1].preview.shape == (64, 64, 3)


# ---- callbacks


def test_a_callback_is_told_every_step_of_every_image(pipe, backbone):
    told = []

    def callback(told_pipe, step, timestep, kwargs):
        assert told_pipe is fixed and kwargs["latents"].shape == kwargs["x0"].shape == (1, 4, 8, 8)
        told.append((kwargs["index"], step, timestep, kwargs["seed"]))
        return kwargs

    fixed = AdaptivePipeline(backbone, "fixed:3", PROCESS)
    out = fixed(
        texts(2),
        seeds=[7, 8],
        output_type="np",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "x0"],
    )
    assert sorted(told) == [(i, s, t, 7 + i) for i in range(2) for s, t in enumerate((999.0, 666.0, 332.0))]
    np.testing.assert_array_equal(out.images, fixed(texts(2), seeds=[7, 8], output_type="np").images)


def test_a_callback_may_put_other_latents_in_their_place(backbone):
    fixed = AdaptivePipeline(backbone, "fixed:3", PROCESS)

    def grey(_, step, __, kwargs):
        return {"latents": torch.zeros_like(kwargs["latents"])} if step == 2 and kwargs["index"] == 1 else {}

    out = fixed(texts(2), output_type="np", callback_on_step_end=grey)
    plain = fixed(texts(2), output_type="np")
    expected = backbone.decode(torch.zeros(1, 4, 8, 8))[0].permute(1, 2, 0).numpy() / 2 + 0.5
    np.testing.assert_array_equal(out.images[0], plain.images[0])
    np.testing.assert_allclose(out.images[1], expected, atol=1 / 255)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (5, "callback_on_step_end returned a int, expected a dict"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, r"latents of shape \(2, 4, 8, 8\), expected \(1, 4, 8, 8\)"),
        ({"latents": 3}, r"latents of shape int, expected \(1, 4, 8, 8\)"),
    ],
)
def test_what_a_callback_may_not_return(pipe, answer, message):
    with pytest.raises(AdDiffusionError, match=message):
        pipe("a dog", callback_on_step_end=lambda *_: answer)


@pytest.mark.parametrize("name", ["_interrupt", "_guidance_scale"])
def test_what_a_callback_may_not_change(pipe, name):
    """Attributes by which diffusers' own pipelines are controlled during a call."""
    with pytest.raises(ConfigError, match=f"callback_on_step_end set {name} of the pipeline, which would not take"):
        pipe("a dog", callback_on_step_end=lambda adaptive, *_: setattr(adaptive, name, 0))
    assert not hasattr(pipe, name)


def test_a_callback_may_keep_attributes_of_its_own(pipe):
    pipe("a dog", callback_on_step_end=lambda adaptive, *_: setattr(adaptive, "_count", 1))
    assert vars(pipe).pop("_count") == 1


def test_callbacks_of_diffusers_are_refused(pipe):
    with pytest.raises(ConfigError, match="a SDCFGCutoffCallback changes attributes of a pipeline's call"):
        pipe("a dog", callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.5))


def test_maps_of_a_refinement_are_no_steps(backbone, scorers):
    steps = []
    refine = replace(REFINE_PRESETS["union"], accept="always")
    process = ProcessConfig(steps=4, guidance_scale=2.0, early_exit_steps=1, refine=refine)
    pipe = AdaptivePipeline(backbone, RefineOnce(), process, scorers=scorers)
    out = pipe("a dog and a cat", callback_on_step_end=lambda _, step, *__: steps.append(step), return_trace=True)
    # Three evaluations to the stop with its early exit, two of the refinement; its maps are counted but not reported.
    assert steps == list(range(len(steps))) and len(steps) < out.nfe[0]
    assert len(out.trace[0].masks) == 1


class RefineOnce:
    name = "refine once"
    needs_preview = False

    def bind(self, backbone, scorers):
        pass

    def process(self, base):
        return base

    def coroutine(self, backbone, process, prompt, seed):
        from addiffusion_env.engine.episode import play

        return play(backbone, process, prompt, seed, looks=False)

    def decide(self, requests):
        return [[0, 0, 2, 1][len(request.lane.actions)] for request in requests]

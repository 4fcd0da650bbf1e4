"""AdaptivePipeline's surface: lists in, images out, each a function of its prompt and seed."""

import numpy as np
import pytest
import torch
from PIL import Image
from zoo.compare import two_lines

from addiffusion_env import AdaptivePipeline
from addiffusion_env.errors import AdDiffusionError, ConfigError

TEXTS = ["a photo of a dog", "a photo of a red cup", "a photo of two cats"]


@pytest.fixture(scope="module")
def pipe():
    return AdaptivePipeline.from_pretrained("emoji", policy="fixed:3")


def test_pil_and_numpy(pipe):
    pil = pipe(TEXTS[:2], seeds=[1, 2])
    array = pipe(TEXTS[:2], seeds=[1, 2], output_type="np")
    assert all(isinstance(image, Image.Image) and image.size == (64, 64) for image in pil.images)
    assert array.images.shape == (2, 64, 64, 3) and array.images.dtype == np.float32
    assert array.images.min() >= 0 and array.images.max() <= 1
    np.testing.assert_allclose(np.asarray(pil.images[0]) / 255, array.images[0], atol=1e-6)
    assert array.nfe.tolist() == [3, 3]
    assert array.actions == [[0, 0, 0]] * 2


def test_a_image_does_not_depend_on_the_list(pipe):
    together = pipe(TEXTS, seeds=[5, 6, 7], output_type="np")
    alone = pipe([TEXTS[1]], seeds=[6], output_type="np")
    np.testing.assert_allclose(together.images[1], alone.images[0], atol=1 / 255 + 1e-6)


def test_tensors_hold_the_same_colours(pipe):
    array = pipe(TEXTS[:1], seeds=[1], output_type="np").images
    tensor = pipe(TEXTS[:1], seeds=[1], output_type="pt").images
    assert tensor.shape == (1, 3, 64, 64) and tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)


def test_one_prompt_and_several_images_of_each(pipe):
    two = pipe(TEXTS[0], seeds=5, num_images_per_prompt=2, output_type="np").images
    listed = pipe([TEXTS[0]] * 2, seeds=[5, 6], output_type="np").images
    np.testing.assert_array_equal(two, listed)
    assert len(pipe(iter(TEXTS[:2]), output_type="np").images) == 2


def test_stop_and_oracle():
    out = AdaptivePipeline.from_pretrained("emoji", policy="stop:2")(TEXTS[:1])
    assert out.actions[0][-1] == 1
    # Of a trained policy's environment the model is kept, not its schedule: the oracle tries every stop of 20 steps.
    assert AdaptivePipeline.from_pretrained("emoji", policy="oracle").sampler.name == "oracle_stop:preference"


def test_prompt_as_diffusers_names_it(pipe):
    named = pipe(prompt=TEXTS[:2], seeds=[1, 2], output_type="np").images
    np.testing.assert_array_equal(named, pipe(TEXTS[:2], seeds=[1, 2], output_type="np").images)
    [streamed] = pipe.stream(prompt=TEXTS[0], seeds=1, output_type="np")
    np.testing.assert_allclose(streamed.image, named[0], atol=1 / 255 + 1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "prompts must be text or a list of texts, got NoneType"),
        ({"prompts": "a dog", "prompt": "a cat"}, "takes no arguments of a pipeline's call, got prompt"),
        ({"prompts": 7}, "prompts must be text or a list of texts, got int"),
        ({"prompts": ["a dog", 7]}, "a prompt must be a string or a Prompt, got int"),
        ({"prompts": ["a dog"], "seeds": [0.5]}, "a seed must be a whole number, got float"),
        ({"prompts": ["a dog"], "seeds": [torch.Generator()]}, "got Generator\n  -> noise is keyed"),
        (
            {"prompts": ["a dog"], "seeds": [1, 2], "num_images_per_prompt": 3},
            "2 seeds for 1 prompts of 3 images each",
        ),
        ({"prompts": ["a dog"], "num_images_per_prompt": 0}, "num_images_per_prompt must be at least 1, got 0"),
        (
            {"prompts": ["a dog"], "callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["latent"]},
            "unknown callback_on_step_end_tensor_inputs 'latent'\n  -> did you mean 'latents'",
        ),
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["a dog"], "seeds": [1, 2]}, "2 seeds for 1 prompts"),
        ({"prompts": ["a dog"], "output_type": "tensor"}, "unknown output_type 'tensor'"),
        ({"prompts": ["a dog"], "cost_per_nfe": 0.1}, "has no cost per NFE"),
        ({"prompts": ["a dog"], "cost_per_nfe": 0.1, "target_nfe": 8}, "both cost_per_nfe and target_nfe"),
        ({"prompts": ["a dog and " * 30]}, "the text window holds 32"),
    ],
)
def test_bad_calls(pipe, arguments, message):
    with pytest.raises(AdDiffusionError, match=message):
        pipe(**arguments)


WRONG_NUMBERS = [
    ({"target_nfe": "3"}, "target_nfe must be float or null, got '3'"),
    ({"target_nfe": float("nan")}, "target_nfe must be float or null, got nan"),
    ({"target_nfe": 0}, "target_nfe must be above 0, got 0"),
    ({"cost_per_nfe": "a"}, "cost_per_nfe must be float or null, got 'a'"),
    ({"cost_per_nfe": -0.1}, "cost_per_nfe must be at least 0, got -0.1"),
    ({"cost_per_nfe": float("inf")}, "cost_per_nfe must be finite, got inf"),
    ({"num_images_per_prompt": "2"}, "num_images_per_prompt must be int, got '2'"),
]


@pytest.mark.parametrize(("numbers", "message"), WRONG_NUMBERS)
def test_numbers_of_a_call_and_a_stream(numbers, message):
    pipe = AdaptivePipeline.from_pretrained("emoji")
    for called in (pipe, pipe.stream):
        with pytest.raises(ConfigError, match=message) as error:
            called("a dog", **numbers)
        two_lines(error.value)


@pytest.mark.parametrize("name", ["max_lanes", "decode_batch"])
@pytest.mark.parametrize(("value", "message"), [("3", "int, got '3'"), (0, "at least 1, got 0"), (1.5, "int, got 1.5")])
def test_numbers_of_lanes(pipe, name, value, message):
    made = [lambda **numbers: pipe.stream("a dog", **numbers)]
    if name == "max_lanes":
        made += [lambda **lanes: AdaptivePipeline(pipe.backbone, "fixed:2", **lanes)]
        made += [lambda **lanes: AdaptivePipeline.from_pretrained("no such policy", **lanes)]
    for make in made:
        with pytest.raises(ConfigError, match=f"{name} must be {message}") as error:
            make(**{name: value})
        two_lines(error.value)


def test_numbers_of_numpy(pipe):
    out = pipe("a dog", num_images_per_prompt=np.int64(2), output_type="np")
    np.testing.assert_array_equal(out.images, pipe("a dog", num_images_per_prompt=2, output_type="np").images)


def test_unknown_policy_or_backbone():
    with pytest.raises(AdDiffusionError, match="unknown policy or backbone 'emojy'\n  -> did you mean 'emoji'"):
        AdaptivePipeline.from_pretrained("emojy")
    with pytest.raises(AdDiffusionError, match="unknown sampler 'fixd'\n  -> did you mean 'fixed'"):
        AdaptivePipeline.from_pretrained("emoji", policy="fixd:3")

"""Masks against closed forms; phrases taken out of prompts."""

import pytest
import torch

from addiffusion_env.engine.regions import attention_mask, gaussian_blur, phrases_of, soft_masks, strongest, without
from addiffusion_env.prompts import Prompt


def test_blur_keeps_constants_and_mass():
    constant = torch.full((2, 16, 16), 3.0)
    torch.testing.assert_close(gaussian_blur(constant, 1.5), constant)
    point = torch.zeros(1, 33, 33)
    point[0, 16, 16] = 1
    blurred = gaussian_blur(point, 2.0)
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-5)
    expected = torch.exp(torch.tensor(-0.5 * (3 / 2) ** 2))
    assert float(blurred[0, 16, 19] / blurred[0, 16, 16]) == pytest.approx(float(expected), abs=1e-5)
    assert gaussian_blur(point, 0) is point


@pytest.mark.parametrize("fraction", [0.01, 0.25, 1.0])
def test_strongest_keeps_the_share(fraction):
    maps = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    chosen = strongest(maps, fraction)
    assert chosen.flatten(1).sum(1).tolist() == [max(1, round(fraction * 256))] * 3
    for values, kept in zip(maps, chosen, strict=True):
        left_out = values[kept == 0]
        assert not len(left_out) or values[kept == 1].min() >= left_out.max()


def test_masks_reach_one_and_take_the_latents_size():
    masks = soft_masks(torch.rand(2, 8, 8), 0.2, 1.0, (16, 16))
    assert masks.shape == (2, 1, 16, 16)
    assert masks.amax((1, 2, 3)).tolist() == pytest.approx([1.0, 1.0])
    assert float(masks.min()) >= 0


def test_attention_mask_follows_content_tokens_only():
    attention = torch.zeros(4, 8, 8)
    attention[0] = 1.0  # a stop word that is attended to everywhere
    attention[2, :4] = 0.3
    mask = attention_mask(attention, [2], 0.5, 0.0, (8, 8))
    assert mask[0, 0, :4].min() == 1 and mask[0, 0, 4:].max() == 0
    assert attention_mask(attention, [], 0.5, 0.0, (8, 8)).min() == 1


@pytest.mark.parametrize(
    ("phrase", "rest"),
    [
        ("a cat", "a photo of a bus and a dog"),
        ("a bus", "a photo of a cat and a dog"),
        ("a dog", "a photo of a cat, a bus"),
    ],
)
def test_one_phrase_out_of_three(phrase, rest):
    text = "a photo of a cat, a bus and a dog"
    assert phrases_of(Prompt.of(text)) == ("a cat", "a bus", "a dog")
    assert without(text, phrase) == rest


def test_a_phrase_that_is_not_there_changes_nothing():
    assert without("a photo of a dog", "a cat") == "a photo of a dog"


def test_a_source_knows_better_than_the_split():
    assert phrases_of(Prompt("rock and roll", "x", phrases=("rock and roll",))) == ("rock and roll",)

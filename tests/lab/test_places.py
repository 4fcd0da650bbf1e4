"""What is known at each place: the regression finds planted signals on unseen prompts; the maps keep the layout."""

import numpy as np
import pytest
import torch

from addiffusion_env.backbones.emoji import EmojiBackbone
from addiffusion_lab.claims.maps import MappedEmoji, maps_of
from addiffusion_lab.claims.places import crossed

PROMPTS, ATTEMPTS, WIDTH = 200, 4, 300
HALVES = np.arange(0, PROMPTS, 2), np.arange(1, PROMPTS, 2)


@pytest.fixture(scope="module")
def planted():
    """Inputs of which one tells prompts apart and one the attempts of a prompt; the target is their sum, with noise."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(PROMPTS, ATTEMPTS, WIDTH))
    inputs[:, :, 0] = 3 * rng.normal(size=(PROMPTS, 1))
    inputs[:, :, 1] *= 3
    target = inputs[:, :, 0] + 0.5 * inputs[:, :, 1]
    return inputs, target, target + 0.5 * rng.normal(size=target.shape)


def test_a_planted_signal_is_found_on_unseen_prompts(planted):
    inputs, target, noisy = planted
    said = crossed(inputs, noisy, HALVES)
    assert np.corrcoef(said.ravel(), target.ravel())[0, 1] > 0.75
    own = crossed(inputs, noisy, HALVES, within=True)
    np.testing.assert_allclose(own.mean(1), 0, atol=1e-9)
    assert np.corrcoef(own.ravel(), (target - target.mean(1, keepdims=True)).ravel())[0, 1] > 0.75
    nothing = crossed(inputs[:, :, 2:], noisy, HALVES)
    assert abs(np.corrcoef(nothing.ravel(), target.ravel())[0, 1]) < 0.2


def test_no_prompt_is_judged_by_a_fit_to_itself(planted):
    inputs, _, noisy = planted
    other = noisy.copy()
    other[HALVES[0]] += 5
    before, after = crossed(inputs, noisy, HALVES), crossed(inputs, other, HALVES)
    assert np.array_equal(before[HALVES[0]], after[HALVES[0]])
    assert not np.allclose(before[HALVES[1]], after[HALVES[1]])


def test_the_maps_keep_the_layout_of_the_features_and_follow_the_prompts_words():
    backbone, plain = MappedEmoji.from_pretrained(), EmojiBackbone.from_pretrained()
    texts = ["a photo of a dog", "a photo of two red cups"]
    x = torch.randn(2, *plain.capabilities.latent_shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.from_numpy(plain.sigmas(6, "trailing")[2:4].copy())
    scale = torch.tensor([4.0, 1.0], dtype=torch.float64)
    found = backbone.predict(x, sigma, backbone.encode(texts), scale)
    expected = plain.predict(x, sigma, plain.encode(texts), scale)
    torch.testing.assert_close(found.x0, expected.x0, atol=1e-4, rtol=1e-4)
    assert found.features.shape == (2, backbone.capabilities.feature_dim)
    maps = maps_of(found.features.numpy())
    np.testing.assert_allclose(maps["middle block, averaged"], expected.features.numpy(), atol=1e-4)
    quarters = maps["middle block, 2x2 cells"].reshape(2, -1, 4)
    np.testing.assert_allclose(quarters.mean(-1), expected.features.numpy(), atol=1e-4)
    assert quarters.std(-1).mean() > 0.1
    words = maps["attention of each word, 4x4 cells"].reshape(2, 10, -1).sum(-1) > 0
    assert words.sum(1).tolist() == [len(kept) for kept in plain.encode(texts).content]

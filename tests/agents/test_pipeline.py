"""AdaptivePipeline's surface: lists in, pictures out, each a function of its prompt and seed."""

import numpy as np
import pytest
from PIL import Image

from addiffusion_env import AdaptivePipeline
from addiffusion_env.agents.pipeline import PRETRAINED
from addiffusion_env.errors import AdDiffusionError

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


def test_a_picture_does_not_depend_on_the_list(pipe):
    together = pipe(TEXTS, seeds=[5, 6, 7], output_type="np")
    alone = pipe([TEXTS[1]], seeds=[6], output_type="np")
    np.testing.assert_allclose(together.images[1], alone.images[0], atol=1 / 255 + 1e-6)


def test_stop_policy():
    out = AdaptivePipeline.from_pretrained("emoji", policy="stop:2")(TEXTS[:1])
    assert out.actions[0][-1] == 1


@pytest.mark.skipif(not (PRETRAINED / "emoji").is_dir(), reason="no policy ships yet")
def test_the_shipped_policy_adapts_and_takes_a_price_or_a_target():
    pipe = AdaptivePipeline.from_pretrained("emoji")
    texts = [*TEXTS, "a photo of a bus left of a bear", "a photo of a green cup and a purple kite"]
    seeds = [0] * len(texts)
    cheap = pipe(texts, seeds=seeds, price=0.0)
    dear = pipe(texts, seeds=seeds, price=pipe.method.config.highest_price)
    for out in (cheap, dear):
        assert len({tuple(actions) for actions in out.actions}) > 1  # not collapsed to one behaviour
    assert any(one != two for one, two in zip(cheap.actions, dear.actions, strict=True))  # the price is seen
    aimed = pipe(texts[:1], seeds=[0], target_nfe=7.0)
    assert len(aimed.images) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": "a dog"}, "got one string"),
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["a dog"], "seeds": [1, 2]}, "2 seeds for 1 prompts"),
        ({"prompts": ["a dog"], "output_type": "tensor"}, "unknown output_type 'tensor'"),
        ({"prompts": ["a dog"], "price": 0.1}, "has no price"),
        ({"prompts": ["a dog"], "price": 0.1, "target_nfe": 8}, "both price and target_nfe"),
        ({"prompts": ["a dog and " * 30]}, "the text window holds 32"),
    ],
)
def test_bad_calls(pipe, arguments, message):
    with pytest.raises(AdDiffusionError, match=message):
        pipe(**arguments)


def test_unknown_policy_or_backbone():
    with pytest.raises(AdDiffusionError, match="unknown policy or backbone 'emojy'\n  -> did you mean 'emoji'"):
        AdaptivePipeline.from_pretrained("emojy")
    with pytest.raises(AdDiffusionError, match="unknown method 'fixd'\n  -> did you mean 'fixed'"):
        AdaptivePipeline.from_pretrained("emoji", policy="fixd:3")

"""Images in progress, as the demo shows them."""

import numpy as np
import pytest

from addiffusion_env.agents.pipeline import AdaptivePipeline
from addiffusion_env.backbones import traits_of
from addiffusion_env.errors import AdDiffusionError, ConfigError
from addiffusion_lab.demo.prompts import read_prompt
from addiffusion_lab.demo.takes import Studio

EMOJI = traits_of("emoji")
HARD = "a photo of an elephant left of a giraffe"  # with seed 0 the shipped policy tries twice


def test_the_policys_last_take_is_the_pipelines_image(studio):
    prompt = read_prompt(HARD, EMOJI)
    takes = list(studio.policy(prompt, 0, 0.015))
    [image] = (out := studio.pipe([HARD], seeds=[0], cost_per_nfe=0.015)).images
    last = takes[-1]
    np.testing.assert_array_equal(last.image, np.asarray(image))
    assert last.nfe == out.nfe[0] and [moment.action for moment in last.moments] == out.actions[0]
    assert last.correct is True and last.reason == "correct" and last.seconds > 0


def test_a_take_comes_after_every_decision(studio):
    takes = list(studio.policy(read_prompt(HARD, EMOJI), 0, 0.015))
    assert [len(take.moments) for take in takes] == [*range(1, len(takes)), len(takes) - 1]
    assert [take.image is None for take in takes] == [True] * (len(takes) - 1) + [False]
    assert np.all(np.diff([take.nfe for take in takes]) >= 0)
    for moment in takes[-1].moments:
        assert moment.probabilities.sum() == pytest.approx(1)
        assert moment.action == moment.probabilities.argmax()
        assert moment.pixels.shape == (64, 64, 3)
    assert takes[-1].moments[0].probabilities[2] == 0  # nothing to refine at the start


def test_cost_moves_what_is_spent(studio):
    prompt = read_prompt("a photo of three bananas", EMOJI)
    spent = [
        list(studio.policy(prompt, 1, cost_per_nfe))[-1].nfe for cost_per_nfe in (0.0, studio.highest_cost_per_nfe)
    ]
    assert spent[1] <= spent[0]
    with pytest.raises(ConfigError, match="The cost per NFE must be 0 or more"):
        next(studio.policy(prompt, 0, float("nan")))


def test_a_fixed_sampler_is_shown_at_some_of_its_steps(studio):
    takes = list(studio.fixed("fixed:12", read_prompt("a photo of a dog", EMOJI), 0))
    last = takes[-1]
    assert last.nfe == 12 and 6 <= len(last.moments) <= 12
    assert all(moment.probabilities is None and moment.action == 0 for moment in last.moments)
    out = AdaptivePipeline.from_pretrained("emoji", policy="fixed:12")(["a photo of a dog"])
    np.testing.assert_array_equal(last.image, np.asarray(out.images[0]))


def test_what_the_grammar_cannot_read_is_not_judged(studio):
    last = list(studio.fixed("fixed:2", read_prompt("a dragon", EMOJI), 0))[-1]
    assert last.correct is None and last.image is not None


def test_a_sampler_without_learning_is_refused():
    with pytest.raises(AdDiffusionError, match="the demo shows a trained policy, got 'fixed:2'"):
        Studio(AdaptivePipeline.from_pretrained("emoji", policy="fixed:2"))

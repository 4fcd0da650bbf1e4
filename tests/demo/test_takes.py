"""Images in progress, as the demo shows them."""

import re

import numpy as np
import pytest

from addiffusion_env.agents.pipeline import AdaptivePipeline
from addiffusion_env.backbones import traits_of
from addiffusion_env.errors import AdDiffusionError, ConfigError
from addiffusion_lab.demo import page
from addiffusion_lab.demo.app import load, showing
from addiffusion_lab.demo.prompts import read_prompt
from addiffusion_lab.demo.takes import Studio
from addiffusion_lab.tiny_pipelines import ZOO

EMOJI = traits_of("emoji")
HARD = "a photo of an elephant left of a giraffe"  # with seed 0 the shipped policy makes two attempts


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


@pytest.mark.parametrize(
    ("sampler", "why"), [("fixed:2", "decides nothing"), ("best_of:2x2", "is more than one episode")]
)
def test_what_is_no_policy_is_refused_before_a_pipeline_is_loaded(sampler, why):
    with pytest.raises(ConfigError, match=why):
        load(sampler, pipe="/no/such/folder")
    with pytest.raises(AdDiffusionError, match=why):
        Studio(AdaptivePipeline.from_pretrained("emoji", policy=sampler))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    ZOO["sd15"]().save_pretrained(path / "sd15")
    return str(path / "sd15")


@pytest.mark.slow
def test_any_pipeline_is_shown_beside_its_own_steps(folder):
    with pytest.warns(UserWarning, match="images are not checked"):  # no scorer of real images is on this machine
        studio = load(pipe=folder, device="cpu")
    assert "StableDiffusionPipeline" in page.about(studio) and "no image is checked" in page.about(studio)
    stages = list(showing(studio, "a red cup", 3, 0.0))
    steps = studio.pipe.backbone.capabilities.default_steps
    shown = re.findall(r'data-sampler="([^"]+)"', stages[-1])
    assert shown == ["policy", f"fixed:{steps // 2}", f"fixed:{steps}"] == ["policy", "fixed:25", "fixed:50"]
    assert "not scored" in stages[-1] and "nan" not in stages[-1]
    take = list(studio.policy(read_prompt("a red cup", studio.traits), 3, 0.0))[-1]
    assert [moment.action for moment in take.moments] == [0, 1]  # to the exit, and out
    np.testing.assert_array_equal(take.image, np.asarray(studio.pipe(["a red cup"], seeds=[3]).images[0]))
    own = list(studio.fixed("fixed:50", read_prompt("a red cup", studio.traits), 3))[-1]
    out = AdaptivePipeline(studio.pipe.backbone, "fixed:50")(["a red cup"], seeds=[3])
    np.testing.assert_array_equal(own.image, np.asarray(out.images[0]))


def test_a_policy_of_another_model_does_not_fit_a_pipeline(folder):
    with pytest.raises(ConfigError, match="does not fit the diffusers backbone"):
        load("emoji", pipe=folder, device="cpu")


def test_a_backbone_is_named_in_place_of_a_folder():
    assert load(pipe="emoji", device="cpu").sampler.name.startswith("policy")  # the rule that ships for it
    studio = load("checked_attempts:0", pipe="emoji", device="cpu")
    assert "untrained" in page.about(studio) and studio.scored and not studio.learned
    last = list(studio.policy(read_prompt(HARD, EMOJI), 0, 0.0))[-1]
    assert last.correct is not None and last.moments[-1].probabilities is None
    assert "preference +" in page.filmstrip(last) or "preference -" in page.filmstrip(last)

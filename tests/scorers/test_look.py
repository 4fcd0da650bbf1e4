"""ImageScores: one batched pass, the same numbers as the scorers alone, rows and concatenation, refusal of NaN."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from addiffusion_env.errors import MissingPackageError, NumericsError, PromptError, UnknownNameError, WeightsError
from addiffusion_env.scorers.clip import ClipScorer
from addiffusion_env.scorers.emoji import emoji_scorers
from addiffusion_env.scorers.hub_image_scores import hub_scorers
from addiffusion_env.scorers.image_scores import ImageScorers, ImageScores
from addiffusion_env.scorers.sharpness import SharpnessScorer


@pytest.fixture
def batch(pairs):
    return pairs[0][:4, 0], [pair[0] for pair in pairs[1][:4]]


def test_a_look_holds_what_the_scorers_say(scorers, batch):
    scores = scorers.scores(*batch)
    assert (scorers.clip_dim, scorers.dino_dim, len(scores)) == (128, 96, 4)
    shapes = {field.name: getattr(scores, field.name).shape for field in dataclasses.fields(scores)}
    assert shapes == {
        "clip_image": (4, 128),
        "clip_text": (4, 128),
        "clip_score": (4,),
        "preference": (4,),
        "dino": (4, 96),
    }
    assert {getattr(scores, name).dtype for name in shapes} == {np.dtype("float32")}
    assert np.allclose(scores.clip_score, scorers.clip.score(*batch), atol=1e-6)
    assert np.allclose(scores.clip_score, (scores.clip_image * scores.clip_text).sum(1), atol=1e-6)
    assert np.allclose(scores.preference, scorers.preference.score(*batch), atol=1e-5)
    assert np.allclose(scores.dino, scorers.dino.embed_images(batch[0]), atol=1e-5)


@pytest.mark.numeric
def test_rows_are_the_looks_at_single_images(scorers, batch):
    scores = scorers.scores(*batch)
    alone = scorers.scores(batch[0][2:3], batch[1][2:3])
    for field in dataclasses.fields(ImageScores):
        row = getattr(scores.row(2), field.name)
        assert row.shape == getattr(alone, field.name).shape
        assert np.allclose(row, getattr(alone, field.name), atol=1e-4)


def test_cat_undoes_rows(scorers, batch):
    scores = scorers.scores(*batch)
    again = ImageScores.cat([scores.rows([0]), scores.rows(np.array([1, 2, 3]))])
    assert all(
        np.array_equal(getattr(again, field.name), getattr(scores, field.name))
        for field in dataclasses.fields(ImageScores)
    )
    assert np.array_equal(scores.rows([3, 0]).preference, scores.preference[[3, 0]])


def test_rows_are_copies(scorers, batch):
    scores = scorers.scores(*batch)
    before = scores.preference[0]
    scores.row(0).preference[0] = 99
    assert scores.preference[0] == before


def test_without_dino_its_width_is_zero(clip_folder, make_images):
    scorers = ImageScorers(ClipScorer.from_pretrained(clip_folder), SharpnessScorer(), None)
    scores = scorers.scores(make_images(2), ["a dog", "a cat"])
    assert scores.dino.shape == (2, 0)
    assert scorers.dino_dim == 0
    assert ImageScores.cat([scores, scores]).dino.shape == (4, 0)


@pytest.mark.parametrize("part", ["clip", "emoji_preference", "dino"])
def test_a_value_that_is_not_finite_names_its_scorer_and_prompt(emoji_weights, batch, part):
    scorers = emoji_scorers(emoji_weights)
    weights = {
        "clip": scorers.clip.model.visual.conv1.weight,
        "emoji_preference": scorers.preference.reader.head.weight,
        "dino": scorers.dino.model.layernorm.weight,
    }
    weights[part].data.fill_(torch.nan)
    with pytest.raises(NumericsError, match=f"^{part} ") as caught:
        scorers.scores(*batch)
    assert repr(batch[1][0].text) in str(caught.value)


def test_one_prompt_a_image(scorers, batch):
    with pytest.raises(PromptError, match="4 images but 3 prompts"):
        scorers.scores(batch[0], batch[1][:3])


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(WeightsError, match="no such folder"):
        emoji_scorers(tmp_path / "absent")
    with pytest.raises(WeightsError, match="clip"):
        emoji_scorers(Path(tmp_path))


def test_the_preference_scorer_is_chosen_by_name(
    clip_folder, dino_folder, image_reward_folder, bert_folder, monkeypatch
):
    """The package is a stub here; that it scores the same is held where it imports (test_image_reward_scorer.py)."""
    asked = []
    package = SimpleNamespace(load=lambda name, **options: asked.append((name, options)))
    paths = {"clip": str(clip_folder), "dino": str(dino_folder), "image_reward": str(image_reward_folder)}
    own = hub_scorers("cpu", {**paths, "image_reward_tokenizer": str(bert_folder)})
    assert own.preference.name == "image_reward"
    monkeypatch.setitem(sys.modules, "ImageReward", package)
    other = hub_scorers("cpu", {**paths, "preference": "image_reward_package"})
    assert other.preference.name == "image_reward_package"
    weights, config = (str(image_reward_folder / name) for name in ("ImageReward.pt", "med_config.json"))
    assert asked == [(weights, {"device": "cpu", "med_config": config})]
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    with pytest.raises(MissingPackageError, match="cannot be imported"):
        hub_scorers("cpu", {"preference": "image_reward_package"})
    with pytest.raises(UnknownNameError, match="did you mean 'image_reward'"):
        hub_scorers("cpu", {**paths, "preference": "imagereward"})

"""The emoji world's joint preference: it rejects what contradicts the prompt, and leaves other prompts to the model."""

from __future__ import annotations

import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch

from addiffusion_env.backbones.emoji import write_manifest
from addiffusion_env.backbones.emoji.objects import Candidates, ObjectReader, candidates, scene_logits
from addiffusion_env.errors import WeightsError
from addiffusion_env.prompts.emoji_grammar import parse
from addiffusion_env.prompts.emoji_vocabulary import CLASSES, COLORS
from addiffusion_env.scorers.emoji import EmojiPreferenceScorer
from addiffusion_lab.emoji_training.layouts import layout
from addiffusion_lab.emoji_training.renderer import Renderer

TWINS = [
    ("a photo of a dog and a cup", "two dogs and a cup"),  # doubled
    ("a photo of a dog and a cup", "a dog"),  # dropped
    ("a photo of a bus", "a bus and a vase"),  # added
    ("a photo of three apples", "four apples"),
    ("a photo of a red cup and a blue clock", "a blue cup and a red clock"),
    ("a photo of a green kite", "a purple kite"),
    ("a photo of a bed", "a train"),
    ("a photo of a horse left of a pizza", "a horse right of a pizza"),
    ("a photo of a horse above a pizza", "a horse below a pizza"),
]


def drawn(text: str, count: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    rows = np.stack([layout(parse(text), rng) for _ in range(count)])
    return Renderer()(rows, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("prompt", "shown"), TWINS)
def test_a_correct_image_beats_one_that_contradicts_its_prompt(scorers, prompt, shown):
    right, wrong = (scorers.preference.score(drawn(text, 16), [prompt] * 16) for text in (prompt, shown))
    assert right.median() > 0.3 > -0.3 > wrong.median()
    assert (right[:, None] > wrong).float().mean() > 0.97


@pytest.mark.numeric
def test_a_score_depends_on_neither_neighbours_nor_chunks(scorers):
    scorer = scorers.preference
    texts = [prompt for prompt, _ in TWINS] + ["an oil painting of a dragon"]
    images = torch.cat([drawn(shown, 1) for _, shown in TWINS] + [drawn("a cat", 1)])
    whole = scorer.score(images, texts)
    alone = torch.cat([scorer.score(images[i : i + 1], [text]) for i, text in enumerate(texts)])
    assert torch.allclose(whole, alone, atol=1e-3)
    chunked = EmojiPreferenceScorer(scorer.matching, scorer.reader, scorer.weights, scorer.mean, scorer.std, chunk=3)
    assert torch.allclose(chunked.score(images, texts), whole, atol=1e-3)
    identity = chunked.identity
    chunked.reader = ObjectReader()
    assert chunked.identity != identity


def test_a_prompt_outside_the_grammar_has_the_matching_score(scorers):
    images, text = drawn("a cat", 3), "an oil painting of a dragon"
    own, matching = (scorer.score(images, [text] * 3) for scorer in (scorers.preference, scorers.preference.matching))
    assert torch.equal(own, matching)


def test_a_reader_without_a_scale_is_refused(emoji_weights, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(emoji_weights, folder)
    path = folder / "objects" / "config.json"
    config = json.loads(path.read_text())
    path.chmod(0o644)
    path.write_text(json.dumps(config | {"score_std": 0}))
    with pytest.raises(WeightsError, match="corrupted"):
        EmojiPreferenceScorer.from_pretrained(folder)
    write_manifest(folder)
    with pytest.raises(WeightsError, match="score_std=0"):
        EmojiPreferenceScorer.from_pretrained(folder)


def test_the_rule_equals_the_sum_over_all_readings_of_the_candidates():
    """Every candidate is absent or one of the classes and colours; a scene's probability is that of its readings."""
    cat, dog = (next(i for i, item in enumerate(CLASSES) if item.name == name) for name in ("cat", "dog"))
    generator = torch.Generator().manual_seed(1)
    number = 4
    present = torch.rand(1, number, generator=generator)
    classes = torch.full((1, number, len(CLASSES)), 0.0)
    classes[..., [cat, dog, 5]] = torch.rand(1, number, 3, generator=generator).softmax(2)
    colors = torch.rand(1, number, 1 + len(COLORS), generator=generator).softmax(2)
    centres = torch.tensor([[[10.0, 10], [50, 12], [12, 50], [48, 52]]])
    found = Candidates(present, classes.log(), colors.log(), centres)

    def expected(holds):
        total = 0.0
        # A reading's colour matters only where a prompt names one: red or not.
        kinds = [None, *itertools.product((cat, dog, 5), (True, False))]
        for reading in itertools.product(kinds, repeat=number):
            probability = 1.0
            for k, kind in enumerate(reading):
                red = float(colors[0, k, 1])
                probability *= (
                    1 - float(present[0, k])
                    if kind is None
                    else float(present[0, k] * classes[0, k, kind[0]]) * (red if kind[1] else 1 - red)
                )
            total += probability * holds(reading)
        return total

    def counted(reading, **wanted):
        shown = [kind for kind in reading if kind is not None]
        cats, dogs = ([kind for kind in shown if kind[0] == cls] for cls in (cat, dog))
        return len(cats) == wanted["cats"] and len(dogs) == wanted["dogs"] and len(shown) == len(cats) + len(dogs)

    def two_red_cats_and_a_dog(reading):
        return counted(reading, cats=2, dogs=1) and all(kind[1] for kind in reading if kind and kind[0] == cat)

    def left_of(reading):
        if not counted(reading, cats=1, dogs=1):
            return 0.0
        first, second = (next(k for k, kind in enumerate(reading) if kind and kind[0] == cls) for cls in (cat, dog))
        distance = float(centres[0, second, 0] - centres[0, first, 0])
        return 1 / (1 + math.exp(-(distance - 7) / 1.5))

    for text, holds in (("two red cats and a dog", two_red_cats_and_a_dog), ("a cat left of a dog", left_of)):
        probability = float(scene_logits(found, [parse(text)]).sigmoid())
        assert probability == pytest.approx(expected(holds), rel=1e-3)


def test_candidates_are_peaks_and_gradients_reach_the_reader():
    reader = ObjectReader().eval()
    found = candidates(reader(drawn("two red cats and a dog", 2)))
    assert found.present.shape == (2, 8) and (found.present.diff(dim=1) <= 0).all()
    scene_logits(found, [parse("two red cats and a dog")] * 2).sum().backward()
    assert all(parameter.grad is not None for parameter in reader.parameters())

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from addiffusion_env.backbones.emoji.detector import Detection, detect, load_detector
from addiffusion_env.errors import ImageRangeError, PromptError
from addiffusion_env.prompts import Prompt
from addiffusion_env.prompts.emoji_grammar import Scene, emoji_prompt, parse, scene_prompt
from addiffusion_env.prompts.emoji_vocabulary import TASKS
from addiffusion_env.scorers.emoji_detector import EmojiDetectorScorer, judge
from addiffusion_lab.emoji_training.layouts import layout, sample_scenes
from addiffusion_lab.emoji_training.renderer import Renderer, empty_layout

CAT, DOG, CUP = 12, 13, 36
RED, BLUE = 1, 5


def item(cls: int, color: int = 0, x: float = 32, y: float = 32) -> Detection:
    return Detection(cls, color, x, y, 0.9)


def read(text: str) -> Scene:
    scene = parse(text)
    assert scene is not None, text
    return scene


def render(*texts: str, seed: int = 0) -> torch.Tensor:
    """Clean images of prompts."""
    rng = np.random.default_rng(seed)
    layouts = np.stack([layout(read(text), rng) for text in texts])
    return Renderer()(layouts, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def scorer() -> EmojiDetectorScorer:
    return EmojiDetectorScorer.from_pretrained()


# ---------------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a dog", [item(DOG)]),
        ("a dog", [item(DOG, RED)]),  # no colour asked for: any will do
        ("a red dog", [item(DOG, RED)]),
        ("two cups", [item(CUP), item(CUP)]),
        ("two red cups and a dog", [item(DOG), item(CUP, RED), item(CUP, RED)]),
        ("a dog left of a cat", [item(CAT, x=50), item(DOG, x=14)]),
        ("a dog right of a cat", [item(DOG, x=50), item(CAT, x=14)]),
        ("a dog above a cat", [item(DOG, y=14), item(CAT, y=50)]),
        ("a dog below a cat", [item(DOG, y=50), item(CAT, y=14)]),
    ],
)
def test_right_findings_are_right(text: str, found: list[Detection]) -> None:
    verdict = judge(found, read(text))
    assert verdict.correct
    assert verdict.reason == "correct"
    assert verdict.found == tuple(found)


@pytest.mark.parametrize(
    ("text", "found", "reason"),
    [
        ("a dog", [], "expected 1 dog, found 0"),
        ("two red cups", [item(CUP, RED)], "expected 2 red cup, found 1"),
        ("two cups", [item(CUP)] * 3, "expected 2 cup, found 3"),
        ("a red dog", [item(DOG, BLUE)], "expected 1 red dog, found 0 red and blue"),
        ("a red dog", [item(DOG)], "expected 1 red dog, found 0 red and uncoloured"),
        ("a dog", [item(DOG), item(CAT)], "expected nothing else, found cat"),
        ("a dog and a cat", [item(DOG), item(CUP)], "expected 1 cat, found 0; expected nothing else, found cup"),
        (
            "a dog left of a cat",
            [item(DOG, x=50), item(CAT, x=14)],
            "expected dog left of cat, found them at (50, 32) and (14, 32)",
        ),
        # Within the margin of 6 pixels neither is left of the other.
        (
            "a dog left of a cat",
            [item(DOG, x=30), item(CAT, x=36)],
            "expected dog left of cat, found them at (30, 32) and (36, 32)",
        ),
    ],
)
def test_wrong_findings_say_why(text: str, found: list[Detection], reason: str) -> None:
    verdict = judge(found, read(text))
    assert not verdict.correct
    assert verdict.reason == reason


def reference_rule(found: list[Detection], scene: Scene) -> bool:
    """The rule as the reference code states it, for comparison."""
    groups = []
    for group in scene.groups:
        same = [f for f in found if f.cls == group.cls]
        hit = [f for f in same if group.color in (0, f.color)]
        if len(hit) != group.count or len(same) != group.count:
            return False
        groups.append(hit)
    if scene.object_count != len(found):
        return False
    if scene.relation is None:
        return True
    dx, dy = groups[1][0].x - groups[0][0].x, groups[1][0].y - groups[0][0].y
    return [dx > 6, dx < -6, dy > 6, dy < -6][scene.relation]


def test_judge_is_the_reference_rule() -> None:
    rng = np.random.default_rng(0)
    outcomes: Counter[bool] = Counter()
    for scene in sample_scenes(600, seed=5)[0]:
        right = [(g.cls, g.color or int(rng.integers(11))) for g in scene.groups for _ in range(g.count)]
        if rng.random() < 0.3:
            right.pop(int(rng.integers(len(right))))
        if rng.random() < 0.3:
            right.append((int(rng.integers(67)), int(rng.integers(11))))
        found = [item(cls, color, *rng.uniform(0, 64, 2)) for cls, color in right]
        expected = reference_rule(found, scene)
        assert judge(found, scene).correct == expected
        outcomes[expected] += 1
    assert min(outcomes.values()) > 100


# ---------------------------------------------------------------------------------------------- the detector


def test_clean_renders_are_judged_right(scorer: EmojiDetectorScorer) -> None:
    scenes, layouts = sample_scenes(350, seed=777)
    images = Renderer()(layouts, torch.Generator().manual_seed(0))
    scores = scorer.score(images, [scene_prompt(scene) for scene in scenes])
    assert scores.shape == (350,)
    assert scores.dtype == torch.float32
    assert scores.mean() >= 0.97
    for task in TASKS:
        assert scores[[scene.task == task for scene in scenes]].mean() >= 0.9, task


def test_detections_are_where_the_sprites_are(scorer: EmojiDetectorScorer) -> None:
    layouts = empty_layout()
    layouts[0, 0], layouts[0, 1] = (CUP, RED, 16, 20, 26), (DOG, 0, 46, 44, 26)
    found = detect(scorer.detector, Renderer()(layouts, torch.Generator().manual_seed(1)))[0]
    assert [(f.name, f.color) for f in found] == [("cup", RED), ("dog", 0)]
    for detection, (_, _, x, y, _) in zip(found, layouts[0], strict=False):
        assert abs(detection.x - x) <= 4
        assert abs(detection.y - y) <= 4
        assert 0.3 < detection.confidence <= 1
    assert str(found[0]).startswith("red cup at (")


@pytest.mark.parametrize(
    ("shown", "asked", "reason"),
    [
        ("two red cups", "three red cups", "expected 3 red cup, found 2"),
        ("a blue cup", "a red cup", "expected 1 red cup, found 0 red and blue"),
        ("a dog", "a cat", "expected 1 cat, found 0; expected nothing else, found dog"),
        ("a dog and a cat", "a dog", "expected nothing else, found cat"),
        ("a dog left of a cup", "a dog right of a cup", "expected dog right of cup, found them at"),
        ("a dog above a cup", "a dog below a cup", "expected dog below cup, found them at"),
        (
            "a red dog and a blue cup",
            "a blue dog and a red cup",
            "expected 1 blue dog, found 0 blue and red; expected 1 red",
        ),
    ],
)
def test_planted_mistakes_are_found(scorer: EmojiDetectorScorer, shown: str, asked: str, reason: str) -> None:
    image = render(shown, seed=3)
    right, wrong = scorer.verdicts(image.repeat(2, 1, 1, 1), [emoji_prompt(shown), emoji_prompt(asked)])
    assert right.correct, right.reason
    assert not wrong.correct
    assert wrong.reason.startswith(reason)
    assert scorer.score(image, [emoji_prompt(asked)]).tolist() == [0.0]


def test_an_empty_image_has_no_objects(scorer: EmojiDetectorScorer) -> None:
    image = Renderer()(empty_layout(), torch.Generator().manual_seed(0))
    assert detect(scorer.detector, image) == [()]


def test_detection_does_not_depend_on_the_batch(scorer: EmojiDetectorScorer) -> None:
    images = render("a dog", "two cups", "a red bus", "a cat above a tie", "four apples")
    whole, parts = detect(scorer.detector, images), detect(scorer.detector, images, batch=2)
    assert [[(f.cls, f.color, f.x, f.y) for f in items] for items in whole] == [
        [(f.cls, f.color, f.x, f.y) for f in items] for items in parts
    ]
    assert detect(scorer.detector, images[:0]) == []


# ---------------------------------------------------------------------------------------------- refusals


def test_refuses_a_prompt_without_a_scene(scorer: EmojiDetectorScorer) -> None:
    with pytest.raises(PromptError, match="'a dream' has no emoji scene to be judged by, got NoneType"):
        scorer.score(render("a dog"), [Prompt.of("a dream")])


def test_refuses_other_images(scorer: EmojiDetectorScorer) -> None:
    prompt = emoji_prompt("a dog")
    with pytest.raises(ImageRangeError, match="reads 64x64 images, got 32x32"):
        scorer.score(torch.zeros(1, 3, 32, 32), [prompt])
    with pytest.raises(PromptError, match="2 images but 1 prompts"):
        scorer.score(torch.zeros(2, 3, 64, 64), [prompt])
    with pytest.raises(ImageRangeError, match="must lie in"):
        scorer.score(torch.full((1, 3, 64, 64), 255.0), [prompt])


def test_its_maps() -> None:
    heat, color = load_detector()(torch.zeros(1, 3, 64, 64))
    assert heat.shape == (1, 67, 16, 16)
    assert color.shape == (1, 11, 16, 16)

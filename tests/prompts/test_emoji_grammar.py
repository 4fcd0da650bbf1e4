from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from addiffusion_env.errors import PromptError, UnknownNameError
from addiffusion_env.prompts import PROMPT_SOURCES, PromptSource
from addiffusion_env.prompts.emoji_grammar import (
    EmojiPrompts,
    Group,
    Scene,
    emoji_prompt,
    parse,
    sample_scene,
    scene_key,
    split_of,
    task_of,
)
from addiffusion_env.prompts.emoji_vocabulary import (
    CLASSES,
    COLORS,
    IMAGE_SIZE,
    MAX_OBJECTS,
    TASK_PROBABILITIES,
    TASKS,
    vocabulary_words,
)
from addiffusion_lab.emoji_training.layouts import layout, sample_scenes

# Written by the reference code that drew the training data of the shipped weights.
GOLDEN_PROMPTS = [
    "an elephant left of a giraffe",
    "a picture of a vase below an apple",
    "a photo of a fork",
    "a photo of two red bicycles and a cup",
    "a photo of a boat and a kite",
    "a photo of a bed left of a hot dog",
    "a photo of a surfboard and a skis",
    "a photo of a cell phone above a cow",
]
GOLDEN_LAYOUT = [[17.0, 0.0, 16.992748, 40.648746, 29.122194], [20.0, 0.0, 45.83606, 39.464558, 23.81726]]


def read(text: str) -> Scene:
    scene = parse(text)
    assert scene is not None, text
    return scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return sample_scenes(3000, seed=11)[0]


def test_draws_are_those_of_the_training_data() -> None:
    scenes, layouts = sample_scenes(8, seed=0)
    assert [scene.text for scene in scenes] == GOLDEN_PROMPTS
    np.testing.assert_allclose(layouts[0][:2], GOLDEN_LAYOUT, rtol=1e-6)
    assert (layouts[0][2:] == -1).all()


def test_vocabulary_is_unambiguous() -> None:
    assert len(CLASSES) == 67
    for forms in ([c.name for c in CLASSES], [c.emoji for c in CLASSES], COLORS, TASKS):
        assert len(set(forms)) == len(forms)
    owners = Counter(word for c in CLASSES for word in {c.plural, c.plain_plural})
    assert set(owners.values()) == {1}
    assert sum(TASK_PROBABILITIES) == pytest.approx(1)
    assert {"cup", "cups", "mouses", "mice", "knives", "knifes", "left", "four"} <= set(vocabulary_words())


def test_parse_inverts_the_grammar(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert parse(scene.text) == scene
    assert {scene.task for scene in scenes} == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_scenes_of_a_task_are_of_that_task(task: str) -> None:
    rng = np.random.default_rng(3)
    drawn = [sample_scene(rng, task) for _ in range(200)]
    layouts = [layout(scene, rng) for scene in drawn]
    assert {scene.task for scene in drawn} == {task}
    assert {task_of(scene.groups, scene.relation) for scene in drawn} == {task}
    assert [int((rows[:, 0] >= 0).sum()) for rows in layouts] == [scene.object_count for scene in drawn]


def test_task_frequencies(scenes: list[Scene]) -> None:
    shares = Counter(scene.task for scene in scenes)
    for task, probability in zip(TASKS, TASK_PROBABILITIES, strict=True):
        assert shares[task] / len(scenes) == pytest.approx(probability, abs=0.03)


def test_layouts_make_their_prompt_true(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    for scene in scenes:
        rows = layout(scene, rng)
        assert rows.shape == (MAX_OBJECTS, 5)
        objects = rows[: scene.object_count]
        asked = Counter({(group.cls, group.color): group.count for group in scene.groups})
        assert Counter((int(cls), int(color)) for cls, color, *_ in objects) == asked
        centres, sizes = objects[:, 2:4], objects[:, 4]
        assert (centres - sizes[:, None] / 2 > -3).all()
        assert (centres + sizes[:, None] / 2 < IMAGE_SIZE + 3).all()
        if scene.relation is not None:
            dx, dy = centres[1] - centres[0]
            assert (dx, -dx, dy, -dy)[scene.relation] > 20


def test_no_two_sprites_overlap_by_half(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(1)
    for scene in scenes[:500]:
        rows = layout(scene, rng)[: scene.object_count]
        for index, row in enumerate(rows):
            for other in rows[:index]:
                reach = (row[4] + other[4]) / 2
                assert np.abs(row[2:4] - other[2:4]).max() > 0.8 * reach


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a photo of a dog", "a dog"),
        ("a photo of a dog", "a picture of a dog"),
        ("A Photo of  a dog.", "a dog"),
        ("a dog left of a cat", "a photo of a dog to the left of a cat"),
        ("a dog left of a cat", "a cat right of a dog"),
        ("a dog above a red cat", "a picture of a red cat below a dog"),
        ("two computer mice", "two computer mouses"),
        ("three knives and a cup", "a photo of a cup and three knifes"),
        ("a dog, a cat and a cup", "a cup, a dog and a cat"),
    ],
)
def test_paraphrases_share_key_and_split(one: str, other: str) -> None:
    assert scene_key(read(one)) == scene_key(read(other))
    assert split_of(read(one)) == split_of(read(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a dog left of a cat", "a cat left of a dog"),
        ("a dog left of a cat", "a dog above a cat"),
        ("a dog left of a cat", "a dog and a cat"),
        ("a red dog and a blue cat", "a blue dog and a red cat"),
        ("two dogs", "three dogs"),
        ("a dog", "a red dog"),
    ],
)
def test_different_scenes_have_different_keys(one: str, other: str) -> None:
    assert scene_key(read(one)) != scene_key(read(other))


def test_one_fifth_is_test(scenes: list[Scene]) -> None:
    splits = {scene_key(scene): split_of(scene) for scene in scenes}
    assert Counter(splits.values())["test"] / len(splits) == pytest.approx(0.2, abs=0.03)


def test_split_does_not_move() -> None:
    # A change here silently mixes the training and test prompts of every agent trained before it.
    single = [read(f"{'an' if c.name[0] in 'aeiou' else 'a'} {c.name}") for c in CLASSES]
    held_out = {scene.groups[0].name for scene in single if split_of(scene) == "test"}
    vehicles, others = {"car", "airplane", "bus"}, {"giraffe", "spoon", "chair", "potted plant", "tv", "scissors"}
    assert held_out == vehicles | others | {"skis", "skateboard", "sandwich", "broccoli"}


@pytest.mark.parametrize(
    ("text", "groups", "relation", "task"),
    [
        ("an orange", (Group(1, 44),), None, "single_object"),
        ("an orange orange", (Group(1, 44, 2),), None, "colors"),
        ("two orange oranges", (Group(2, 44, 2),), None, "complex"),
        ("four people", (Group(4, 0),), None, "counting"),
        ("one hot dog below a dog", (Group(1, 47), Group(1, 13)), 3, "position"),
        ("a red dog and a cat", (Group(1, 13, 1), Group(1, 12)), None, "complex"),
        ("a red dog and a red cat", (Group(1, 13, 1), Group(1, 12, 1)), None, "complex"),
        ("a dog, a cat, and a cup", (Group(1, 13), Group(1, 12), Group(1, 36)), None, "complex"),
    ],
)
def test_parse_reads(text: str, groups: tuple[Group, ...], relation: int | None, task: str) -> None:
    assert read(text) == Scene(task, groups, relation, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "a photo of",
        "a",
        "dog",
        "a dragon",
        "a turquoise dog",
        "two dog",
        "a dogs",
        "five dogs",
        "zero dogs",
        "three dogs and two cats",
        "two dogs left of a cat",
        "a dog left of a cat and a cup",
        "a dog left of a cat above a cup",
        "a dog and a dog",
        "a dog and",
        "an oil painting of a dog",
        "a dog, a cat, a cup and a bus",
    ],
)
def test_parse_refuses(text: str) -> None:
    assert parse(text) is None


def test_scene_refuses_contradictions() -> None:
    with pytest.raises(PromptError, match="5 objects, at most 4 fit"):
        Scene("complex", (Group(3, 0), Group(2, 1)), None, "x")
    with pytest.raises(PromptError, match="two groups of one class"):
        Scene("two_object", (Group(1, 0), Group(1, 0)), None, "x")
    with pytest.raises(PromptError, match="between two single objects"):
        Scene("position", (Group(1, 0),), 0, "x")
    with pytest.raises(PromptError, match="out of range"):
        Scene("colors", (Group(1, 0, 11),), None, "x")
    with pytest.raises(UnknownNameError, match="did you mean 'counting'"):
        Scene("countin", (Group(2, 0),), None, "x")


def test_sample_scene_refuses_an_unknown_task() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'colors'"):
        sample_scene(np.random.default_rng(0), "colours")


def test_emoji_prompt_carries_the_scene() -> None:
    prompt = emoji_prompt("a photo of two Red cups and a dog")
    assert prompt.phrases == ("two Red cups", "a dog")
    assert prompt.constraints == 4  # cup, two of them, red, dog
    assert prompt.task == "complex"
    assert prompt.requirements == parse(prompt.text)
    assert emoji_prompt("a red cup to the left of a dog").phrases == ("a red cup", "a dog")
    assert emoji_prompt("a cat, a dog and a cup").phrases == ("a cat", "a dog", "a cup")


def test_emoji_prompt_of_free_text_is_plain() -> None:
    prompt = emoji_prompt("my grandmother's garden")
    assert (prompt.requirements, prompt.phrases, prompt.constraints) == (None, (), 0)
    assert prompt.prompt_id.startswith("emoji-")


@pytest.mark.parametrize(
    ("text", "constraints"), [("a dog", 1), ("a red dog", 2), ("two red dogs", 3), ("a dog above a cat", 3)]
)
def test_constraints(text: str, constraints: int) -> None:
    assert emoji_prompt(text).constraints == constraints


def test_source_is_a_prompt_source() -> None:
    source = PROMPT_SOURCES.load("emoji")()
    assert isinstance(source, PromptSource)
    prompt = source.sample(np.random.default_rng(0))
    assert len(prompt.prompt_id) == len("emoji-") + 16
    assert split_of(prompt.requirements) == "train"


def test_take_is_deterministic_distinct_and_nested() -> None:
    taken = EmojiPrompts("test").take(300, seed=4)
    assert taken == EmojiPrompts("test").take(300, seed=4)
    assert taken[:50] == EmojiPrompts("test").take(50, seed=4)
    assert taken != EmojiPrompts("test").take(300, seed=5)
    assert len({prompt.prompt_id for prompt in taken}) == 300
    assert EmojiPrompts().take(0) == []


def test_take_all_begins_as_the_training_data_does() -> None:
    assert [prompt.text for prompt in EmojiPrompts("all").take(8, seed=0)] == GOLDEN_PROMPTS


def test_splits_share_no_scene() -> None:
    keys = {split: {scene_key(p.requirements) for p in EmojiPrompts(split).take(800)} for split in ("train", "test")}  # type: ignore[arg-type]
    assert not keys["train"] & keys["test"]


def test_tasks_restrict_and_keep_their_proportions() -> None:
    prompts = EmojiPrompts("train", tasks=("counting", "position", "color_attr")).take(400)
    shares = Counter(prompt.task for prompt in prompts)
    assert set(shares) == {"counting", "position", "color_attr"}
    assert shares["position"] > 80


def test_take_says_when_there_are_not_enough() -> None:
    with pytest.raises(PromptError, match=r"asked for 1000 different prompts, found \d+ in split 'test'"):
        EmojiPrompts("test", tasks=["single_object"]).take(1000)


def test_source_refuses_mistakes() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'train'"):
        EmojiPrompts("trian")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="did you mean 'position'"):
        EmojiPrompts(tasks=["positions"])
    with pytest.raises(PromptError, match="list of tasks is empty"):
        EmojiPrompts(tasks=[])

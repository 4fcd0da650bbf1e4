"""GenEval: its file, and its prompts in the emoji world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from addiffusion_env.errors import PromptError
from addiffusion_env.prompts.emoji_grammar import Group, parse
from addiffusion_lab.benchmarks.emoji_world import make_scene, wording
from addiffusion_lab.benchmarks.geneval import GenEvalPrompts, constraints, emoji_scene, phrases
from addiffusion_lab.emoji_training.layouts import sample_scenes

ENTRIES: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"},
    {
        "tag": "two_object",
        "include": [{"class": "broccoli", "count": 1}, {"class": "vase", "count": 1}],
        "prompt": "a photo of a broccoli and a vase",
    },
    {
        "tag": "counting",
        "include": [{"class": "knife", "count": 4}],
        "exclude": [{"class": "knife", "count": 5}],
        "prompt": "a photo of four knifes",
    },
    {
        "tag": "colors",
        "include": [{"class": "orange", "count": 1, "color": "white"}],
        "prompt": "a photo of a white orange",
    },
    {
        "tag": "position",
        "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a dog right of a teddy bear",
    },
    {
        "tag": "color_attr",
        "include": [
            {"class": "skis", "count": 1, "color": "green"},
            {"class": "airplane", "count": 1, "color": "brown"},
        ],
        "prompt": "a photo of a green skis and a brown airplane",
    },
]


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "evaluation_metadata.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_every_field_is_kept(tmp_path: Path) -> None:
    entries = [{**ENTRIES[0], "unknown field": [1, {"deep": None}]}, *ENTRIES[1:]]
    source = GenEvalPrompts(write(tmp_path, *entries), partial=True)
    assert [prompt.metadata["entry"] for prompt in source] == entries
    assert [prompt.metadata["index"] for prompt in source] == list(range(len(entries)))
    assert [prompt.task for prompt in source] == [entry["tag"] for entry in entries]
    assert [prompt.constraints for prompt in source] == [1, 1, 2, 2, 2, 3, 4]
    assert source.prompts[5].phrases == ("a dog", "a teddy bear") and source.prompts[0].requirements is None


def test_ids_do_not_depend_on_the_rest_of_the_file(tmp_path: Path) -> None:
    whole = GenEvalPrompts(write(tmp_path, *ENTRIES), partial=True)
    ids = [prompt.prompt_id for prompt in whole]
    assert len(set(ids)) == len(ids)
    (one,) = GenEvalPrompts(write(tmp_path, ENTRIES[5]), partial=True)
    assert one.prompt_id == ids[5] == "geneval-627b819c62647334"


def test_emoji_prompts_carry_the_scene_in_the_order_of_the_text(tmp_path: Path) -> None:
    source = GenEvalPrompts(write(tmp_path, *ENTRIES), world="emoji", partial=True)
    assert [prompt.metadata["index"] for prompt in source] == [1, 2, 3, 4, 5, 6]  # no bench there
    assert source.listed == 7
    for prompt in source:
        entry = prompt.metadata["entry"]
        scene = prompt.requirements
        assert parse(prompt.text) == scene and prompt.text == prompt.metadata["original"] == entry["prompt"]
        assert sorted((g.name, g.count) for g in scene.groups) == sorted(
            (i["class"], i["count"]) for i in entry["include"]
        )
        assert scene.task == prompt.task == entry["tag"] and scene.constraints == prompt.constraints
    position = source.prompts[4].requirements
    assert [group.name for group in position.groups] == ["dog", "teddy bear"] and position.relation == 1


def test_words_that_the_tokenizer_lacks_are_translated() -> None:
    scene = emoji_scene(ENTRIES[3], "quatre couteaux")
    assert scene is not None and scene.text == "a photo of four knives" and parse(scene.text) == scene


def test_a_text_that_says_something_else_than_the_fields_is_translated() -> None:
    scene = emoji_scene(ENTRIES[5], "a photo of a teddy bear right of a dog")
    assert scene is not None and scene.text == "a photo of a dog right of a teddy bear"


@pytest.mark.parametrize(
    "include",
    [
        [{"class": "bench", "count": 1}],
        [{"class": "cow", "count": 5}],
        [{"class": "cow", "count": 1, "color": "beige"}],
        [{"class": "cow", "count": 1}, {"class": "cow", "count": 1}],
        [{"class": "cow", "count": 1, "position": ["above", 0]}],
        [{"class": "cow", "count": 1}, {"class": "dog", "count": 1, "position": ["inside", 0]}],
        [{"class": "cow", "count": 2}, {"class": "dog", "count": 1, "position": ["above", 0]}],
        [
            {"class": "cow", "count": 1, "position": ["above", 1]},
            {"class": "dog", "count": 1, "position": ["below", 0]},
        ],
        [{"class": name, "count": 1} for name in ("cow", "dog", "cat", "cup")],
    ],
)
def test_what_the_emoji_world_lacks_has_no_scene(include: list[dict[str, Any]]) -> None:
    assert emoji_scene({"tag": "x", "include": include, "prompt": "p"}, "p") is None


def test_exclusions_must_follow_from_exact_counts() -> None:
    base = {"tag": "x", "include": [{"class": "cow", "count": 2}], "prompt": "p"}
    assert (
        emoji_scene({**base, "exclude": [{"class": "cow", "count": 3}, {"class": "dog", "count": 1}]}, "p") is not None
    )
    assert emoji_scene({**base, "exclude": [{"class": "cow", "count": 2}]}, "p") is None
    assert emoji_scene({**base, "exclude": [{"class": "cow", "count": 3, "color": "red"}]}, "p") is None


def test_the_plain_wording_is_read_back_as_the_same_scene() -> None:
    scenes, _ = sample_scenes(300, seed=5)
    for scene in scenes:
        text = wording(scene.groups, scene.relation)
        again = parse(text)
        assert again is not None and (again.groups, again.relation) == (scene.groups, scene.relation)
        told = make_scene(scene.groups, scene.relation, scene.text)
        assert told is not None and told.text == scene.text


def test_impossible_scenes_are_none() -> None:
    assert make_scene([Group(3, 1), Group(2, 2)], None, "five things") is None


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON: Expecting property name"),
        ("[" * 100_000, "not JSON"),
        ('["a"]', "expected a JSON object, got list"),
        ('{"tag": "x", "include": [{"class": "a", "count": 1}]}', "the field 'prompt' is missing"),
        ('{"tag": 3, "include": [], "prompt": "p"}', "tag must be text, got 3"),
        ('{"tag": "x", "include": [], "prompt": "p"}', "include is empty"),
        ('{"tag": "x", "include": {"class": "a"}, "prompt": "p"}', "include must be a list of objects"),
        ('{"tag": "x", "include": [{"count": 1}], "prompt": "p"}', "include: class must be text, got None"),
        (
            '{"tag": "x", "include": [{"class": "a", "count": 0}], "prompt": "p"}',
            "include: count must be a whole number",
        ),
        ('{"tag": "x", "include": [{"class": "a", "count": true}], "prompt": "p"}', "include: count must be a whole"),
        (
            '{"tag": "x", "include": [{"class": "a", "count": 1, "color": 7}], "prompt": "p"}',
            "color must be text, got 7",
        ),
        (
            '{"tag": "x", "include": [{"class": "a", "count": 1, "position": ["above", 1]}], "prompt": "p"}',
            r"position must be \[relation, index of an object\]",
        ),
        (
            '{"tag": "x", "include": [{"class": "a", "count": 1}], "exclude": 3, "prompt": "p"}',
            "exclude must be a list",
        ),
        ('{"tag": "x", "include": [{"class": "a", "count": 1}], "prompt": 3}', "a prompt must be text, got int"),
        (
            '{"tag": "x", "include": [{"class": "a", "count": 1}], "prompt": "a\\u001b[2J"}',
            r"contains the control character U\+001B",
        ),
        ('{"tag": "x", "include": [{"class": "a", "count": 1}], "prompt": "\\ud800"}', r"U\+D800"),
    ],
)
def test_malformed_lines_name_file_and_line(line: str, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path, ENTRIES[0], "", line, ENTRIES[1])
    with pytest.raises(PromptError, match=rf"evaluation_metadata\.jsonl, line 3: .*{problem}"):
        GenEvalPrompts(path, partial=True)


def test_a_prompt_of_100_000_characters_is_read_at_once(tmp_path: Path) -> None:
    for filler in ("x ", " ", " ,", " and "):
        text = "a photo of a cow" + filler * 50_000 + "."
        entry = {"tag": "x", "include": [{"class": "cow", "count": 1}], "prompt": text}
        (prompt,) = GenEvalPrompts(write(tmp_path, entry), partial=True)
        assert len(prompt.text) >= 100_000 or not filler.strip()
        (emoji,) = GenEvalPrompts(write(tmp_path, entry), world="emoji", partial=True)
        assert emoji.text == "a photo of a cow"


def test_phrases_are_only_given_when_they_match() -> None:
    assert phrases("a photo of a cup", 1) == ("a cup",)
    assert phrases("a photo of salt and pepper", 1) == ()
    assert constraints({"include": [{"class": "a", "count": 2, "color": "red"}]}) == 3

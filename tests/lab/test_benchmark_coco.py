"""COCO-30K: a fixed subset of captions, from any of the forms in which they are handed round."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from test_benchmark_origin import FakeHub

from addiffusion_env.errors import ConfigError, PromptError
from addiffusion_lab.benchmarks.coco import CocoPrompts


def annotations(folder: Path, images: int = 40, captions: int = 5) -> Path:
    items: list[dict[str, Any]] = [
        {"image_id": 1000 - image, "id": 10 * image + n, "caption": f"picture {1000 - image} told for the {n}th time\n"}
        for n in range(captions)
        for image in range(images)
    ]
    path = folder / "captions_val2014.json"
    content = {"info": {}, "images": [{"id": 1000 - n} for n in range(images)], "annotations": items}
    path.write_text(json.dumps(content))
    return path


def listed(folder: Path, text: str) -> Path:
    path = folder / "metadata.csv"
    path.write_text(text, newline="")
    return path


def test_the_subset_is_fixed_for_ever(tmp_path: Path) -> None:
    source = CocoPrompts(annotations(tmp_path), count=10)
    assert source.digest == "8885b693818ecb66c33b26b8b0d6b3708b273ba9f9b706026f46a22377d166bd"
    assert source.prompts[0].prompt_id == "coco-4e8c6d8edff2ab96"


def test_one_caption_a_image_images_in_order(tmp_path: Path) -> None:
    source = CocoPrompts(annotations(tmp_path), count=25)
    images = [int(prompt.metadata["image"]) for prompt in source]
    assert len(set(images)) == 25 and images == sorted(images)
    assert all(prompt.text.startswith(f"picture {image} told") for prompt, image in zip(source, images, strict=True))
    assert all(prompt.text == prompt.text.strip() for prompt in source)
    assert len({prompt.text[-9:] for prompt in source}) == 5  # not always the first caption
    assert len({prompt.prompt_id for prompt in source}) == 25 and source.prompts[0].task == "caption"


def test_seeds_give_other_subsets_and_larger_ones_hold_smaller_ones(tmp_path: Path) -> None:
    path = annotations(tmp_path)
    small, large = CocoPrompts(path, count=10), CocoPrompts(path, count=20)
    assert {p.prompt_id for p in small} < {p.prompt_id for p in large}
    assert CocoPrompts(path, count=10).digest == small.digest
    assert CocoPrompts(path, count=10, subset_seed=1).digest != small.digest


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    path = annotations(tmp_path)
    with pytest.raises(PromptError, match="holds 40 prompts, published are 30000"):
        CocoPrompts(path)
    assert len(CocoPrompts(path, partial=True)) == 40
    with pytest.raises(ConfigError, match="count must be at least 1, got 0"):
        CocoPrompts(path, count=0)


def test_a_list_is_taken_as_it_is_and_gives_the_annotations_ids(tmp_path: Path) -> None:
    drawn = CocoPrompts(annotations(tmp_path), count=5)
    rows = "".join(f'COCO_val2014_{int(p.metadata["image"]):012d}.jpg,"{p.text}"\r\n' for p in reversed(drawn.prompts))
    source = CocoPrompts(listed(tmp_path, "file_name,text\r\n" + rows).parent, partial=True)  # the list beats the draw
    assert [p.prompt_id for p in source] == [p.prompt_id for p in reversed(drawn.prompts)]


def test_equal_captions_of_two_images_are_two_prompts(tmp_path: Path) -> None:
    source = CocoPrompts(listed(tmp_path, "file_name,text\na_1.jpg,a man\na_2.jpg,a man\n"), count=2)
    assert [p.text for p in source] == ["a man", "a man"] and source.prompts[0].prompt_id != source.prompts[1].prompt_id


def test_a_list_without_names_is_told_apart_by_its_lines(tmp_path: Path) -> None:
    source = CocoPrompts(listed(tmp_path, 'caption\n"a man,\nold"\n\na man\n'), count=2)
    assert [p.text for p in source] == ["a man, old", "a man"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("image,words\na,b\n", "line 1: expected a column text or caption or prompt, got 'image, words'"),
        ("file_name,text\na_1.jpg\n", "line 2: expected 2 fields, got 1"),
        ("file_name,text\na_1.jpg,x\na_01.png,y\n", "line 3: the image '1' is there twice"),
        ('file_name,text\na_1.jpg,"x\n', "not CSV"),
        ("file_name,text\na_1.jpg,\n", "line 2: the prompt is empty"),
        ("[1]", "line 1: expected a column"),
        ("", "holds no prompt"),
    ],
)
def test_lists_name_file_and_line(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=problem):
        CocoPrompts(listed(tmp_path, text), partial=True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "line 1: not JSON"),
        ("{}", "the list 'annotations' is missing"),
        ('{"annotations": [3]}', "annotation 1: expected whole numbers image_id and id and a caption"),
        ('{"annotations": [{"image_id": 1, "id": 1, "caption": "a"}, {"image_id": "2", "id": 2}]}', "annotation 2"),
        ('{"annotations": [{"image_id": 1, "id": 7, "caption": null}]}', "annotation id 7: a prompt must be text"),
        ('{"annotations": []}', "holds no prompt"),
    ],
)
def test_annotations_name_the_place(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "captions_val2014.json"
    path.write_text(text)
    with pytest.raises(PromptError, match=problem):
        CocoPrompts(path, partial=True)


def test_the_hubs_table_is_read_without_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    class Table(list):  # the part of datasets.Dataset that is used
        column_names = ("image", "caption")

        def select_columns(self, names: list[str]) -> list[dict[str, Any]]:
            return [{name: row[name] for name in names} for row in self]

    rows = Table({"image": object(), "caption": text} for text in ("a man", "a dog\n", "a man"))
    monkeypatch.setitem(sys.modules, "datasets", FakeHub({"train": rows}))
    source = CocoPrompts("hub", count=3)
    assert [p.text for p in source] == ["a man", "a dog", "a man"] and len({p.prompt_id for p in source}) == 3

"""The published files themselves, where a machine has them: each is read wholly, with the counts that were measured."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest

from addiffusion_env.prompts.emoji_grammar import parse
from addiffusion_env.prompts.emoji_vocabulary import CLASSES, vocabulary_words
from addiffusion_lab.benchmarks.base import Benchmark
from addiffusion_lab.benchmarks.export import t2i_compbench_name
from addiffusion_lab.benchmarks.geneval import GenEvalPrompts
from addiffusion_lab.benchmarks.lists import ImageRewardPrompts, PartiPrompts
from addiffusion_lab.benchmarks.t2i_compbench import CATEGORIES, T2ICompBenchPrompts

PROJECT = Path(__file__).parent.parent.parent
ROOT = Path(os.environ.get("ADDIFFUSION_BENCHMARKS") or PROJECT / "../shared/benchmarks")


def folder(name: str) -> Path:
    if not (ROOT / name).is_dir():
        pytest.skip(f"no {name} in {ROOT}")
    return ROOT / name


def check_ids(source: Benchmark, count: int) -> None:
    assert len(source) == len({prompt.prompt_id for prompt in source}) == count


def test_geneval_is_read_completely() -> None:
    source = GenEvalPrompts(folder("geneval"))
    check_ids(source, 553)
    assert [p.text for p in source] == (folder("geneval") / "generation_prompts.txt").read_text().splitlines()
    assert all(len(p.phrases) == len(p.metadata["entry"]["include"]) for p in source)
    assert source.digest == "80127d781f5eed6a3460e3bd71db38587ad69ede23b09e04c7ddaa54a09e9c48"


def test_geneval_on_the_emoji_world() -> None:
    source = GenEvalPrompts(folder("geneval"), world="emoji")
    check_ids(source, 421)
    assert Counter(p.task for p in source) == {
        "single_object": 67,
        "two_object": 67,
        "counting": 66,
        "colors": 78,
        "position": 71,
        "color_attr": 72,
    }
    words, names = set(vocabulary_words()), {item.name for item in CLASSES}
    for prompt in source:
        assert set(re.findall(r"[^\s,.]+|[,.]", prompt.text)) <= words
        assert parse(prompt.text) == prompt.requirements and prompt.requirements.task == prompt.task
    kept = {p.prompt_id for p in source}
    for prompt in GenEvalPrompts(folder("geneval")):
        known = all(item["class"] in names for item in prompt.metadata["entry"]["include"])
        assert known == (prompt.prompt_id in kept)  # nothing is lost for another reason than its classes


def test_parti_is_read_completely() -> None:
    source = PartiPrompts(folder("parti"))
    check_ids(source, 1632)
    assert len({p.metadata["challenge"] for p in source}) == 11
    assert sum(p.metadata["original"] != p.text for p in source) == 10
    assert sum(p.text.startswith('"G I G G L E" painted') for p in source) == 1
    assert max(len(p.text.split()) for p in source) == 67
    assert source.prompts[0].text == "bond" and source.prompts[0].task == "Abstract"


def test_compbench_is_read_completely() -> None:
    path = folder("t2i_compbench")
    source = T2ICompBenchPrompts(path)
    check_ids(source, 2400)
    kinds = Counter(p.metadata.get("kind") for p in source if p.task == "complex")
    assert kinds == {"spatial": 58, "action": 212, "spatialaction": 30}
    assert source.prompts[0].text == "a green bench and a blue bowl"
    check_ids(T2ICompBenchPrompts(path, split="train"), 5600)
    check_ids(T2ICompBenchPrompts(path, split="all"), 7860)
    for prompt in source:
        assert t2i_compbench_name(prompt.text, prompt.metadata["index"], 10, 9).split("_")[0] == prompt.text


def test_every_list_of_compbench_is_read_by_its_path() -> None:
    files = [path for path in sorted(folder("t2i_compbench").glob("*.txt")) if path.name != "License.txt"]
    assert len(files) == 37  # 36 lists of prompts, and new_objects.txt
    for path in files:
        expected = sum(1 for line in path.read_bytes().split(b"\n") if line.strip())
        check_ids(T2ICompBenchPrompts(path), expected)
    assert {f"{category}_val.txt" for category in CATEGORIES} <= {path.name for path in files}


def test_imagereward_is_read_completely() -> None:
    source = ImageRewardPrompts(folder("imagereward"))
    check_ids(source, 100)
    assert source.prompts[0].prompt_id == "imagereward-005695-0057"
    assert source.prompts[0].text == "a concept art of a vehicle, cyberpunk"

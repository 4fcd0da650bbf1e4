"""Damaged files: a reader gives clean prompts or a PromptError that names the file, and nothing else."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_benchmark_geneval import ENTRIES

from addiffusion_env.errors import PromptError
from addiffusion_lab.benchmarks.base import Benchmark, list_digest
from addiffusion_lab.benchmarks.coco import CocoPrompts
from addiffusion_lab.benchmarks.export import MAX_NAME_BYTES, t2i_compbench_name
from addiffusion_lab.benchmarks.geneval import GenEvalPrompts
from addiffusion_lab.benchmarks.lists import DrawBenchPrompts, HPDv2Prompts, ImageRewardPrompts, PartiPrompts
from addiffusion_lab.benchmarks.origin import clean
from addiffusion_lab.benchmarks.t2i_compbench import T2ICompBenchPrompts

FILES: dict[str, tuple[Callable[..., Benchmark], str]] = {
    "evaluation_metadata.jsonl": (GenEvalPrompts, "\n".join(map(json.dumps, ENTRIES))),
    "PartiPrompts.tsv": (
        PartiPrompts,
        'Prompt\tCategory\tChallenge\tNote\n"a" dog\tArts\tBasic\t\na cat\tArts\tx\ty\n',
    ),
    "drawbench.csv": (DrawBenchPrompts, 'Prompts,Category\n"a, b",Colors\n"two\nlines",Text\n'),
    "photo.json": (HPDv2Prompts, '["a dog", "a cat \\u00e9", "a\\tb"]'),
    "benchmark-prompts.json": (ImageRewardPrompts, '[{"id": "1-2", "prompt": "a dog"}, {"id": "3", "prompt": "b"}]'),
    "color_val.txt": (T2ICompBenchPrompts, "a green bench and a blue bowl\r\na dog\r\n"),
    "metadata.csv": (CocoPrompts, 'file_name,text\nCOCO_val2014_000000000164.jpg,"a man, old"\nb_7.jpg,a dog\n'),
    "captions.json": (
        CocoPrompts,
        '{"annotations": [{"image_id": 7, "id": 1, "caption": "a dog"}, {"image_id": 8, "id": 2, "caption": "a cat"}]}',
    ),
}
ODD_VALUES: list[Any] = [None, True, -1, 0, 7, 1.5, 10**400, "", "x" * 10_000, "\x1b[2J", "\ud800", [], {}, [[]], "a b"]
SPLICES = [
    b"\x1b[2J",
    *(bytes([value]) for value in range(0, 256, 7)),
    *(b'"', b",", b"\t", b"\n", b"\r", b"{", b"]", b"null", b"-1", b"1e999", b"\\ud800", b"\\u0000", b"\xe2\x80\xa8"),
    *(b"<script>", b"../", b"_", b"\xef\xbb\xbf", b"9" * 5000, b" and " * 200, b"[" * 2000),
]


def damage(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 2)):
        place = rng.randint(0, len(data))
        match rng.randint(0, 3):
            case 0:
                data = data[:place] + rng.choice(SPLICES) + data[place:]
            case 1:
                data = data[:place] + data[place + rng.randint(1, 9) :]
            case 2:
                data = data[:place]
            case 3:
                other = rng.randint(0, len(data))
                data = data[:place] + data[other:]
    return data


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("world", ["any", "emoji"])
def test_damaged_files_are_read_or_refused(name: str, world: str, tmp_path: Path) -> None:
    reader, text = FILES[name]
    rng = random.Random(f"{name} {world}")
    path = tmp_path / name
    read, errors = 0, []
    for _ in range(200):
        path.write_bytes(damage(text.encode(), rng))
        try:
            source = reader(path, world=world, partial=True)
        except PromptError as error:
            errors.append(str(error))
            continue
        read += 1
        assert len({prompt.prompt_id for prompt in source}) == len(source)
        assert all(prompt.text == prompt.text.strip() != "" for prompt in source)
        assert not any(ord(char) < 32 or char == "\x7f" for prompt in source for char in prompt.text)
        assert list_digest(source) == source.digest
        assert (world == "emoji") == all(prompt.requirements is not None for prompt in source)
    assert len(errors) > 10 and (read > 0 or world == "emoji")
    assert not any("\x1b" in error or "\n  -> " not in error or len(error) > 1500 for error in errors)


def put_elsewhere(value: Any, rng: random.Random) -> Any:
    """The same JSON with one odd value in place of one of its parts."""
    if isinstance(value, list | dict) and value and rng.random() < 0.85:
        key = rng.choice(range(len(value)) if isinstance(value, list) else list(value))
        changed = {**value} if isinstance(value, dict) else [*value]
        if isinstance(changed, dict) and rng.random() < 0.2:
            del changed[key]
        else:
            changed[key] = put_elsewhere(value[key], rng)
        return changed
    return rng.choice(ODD_VALUES)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".json", ".jsonl"))])
def test_odd_values_are_read_or_refused(name: str, tmp_path: Path) -> None:
    reader, text = FILES[name]
    rng = random.Random(name)
    path = tmp_path / name
    outcomes = Counter()
    for _ in range(300):
        lines = text.split("\n")
        place = rng.randrange(len(lines))
        lines[place] = json.dumps(put_elsewhere(json.loads(lines[place]), rng))
        path.write_text("\n".join(lines))
        for world in ("any", "emoji"):
            try:
                source = reader(path, world=world, partial=True)
            except PromptError as error:
                outcomes["refused"] += 1
                assert_harmless(str(error), name)
            else:
                outcomes["read"] += 1
                assert all(clean(prompt.text, "") == prompt.text for prompt in source)
    assert outcomes["read"] > 10 and outcomes["refused"] > 10


def assert_harmless(message: str, name: str) -> None:
    assert name.partition(".")[0] in message or "benchmark" in message or "emoji world" in message
    assert "\x1b" not in message and len(message) < 1500


def test_names_of_any_text_are_one_plain_file_name_or_refused() -> None:
    rng = random.Random(0)
    alphabet = "abc ._-/\\:\x00\n\x1b\u202eé\N{DOG}\"'<>|*?~$"
    kept = 0
    for _ in range(3000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.choice([1, 2, 3, 8, 300])))
        try:
            name = t2i_compbench_name(text, rng.randrange(300), 10, rng.randrange(10))
        except PromptError:
            continue
        kept += 1
        assert Path(name).name == name not in (".", "..") and len(name.encode()) <= MAX_NAME_BYTES
        assert name.split("_")[0] == text and name[-10:-4].isdigit()
    assert kept > 100

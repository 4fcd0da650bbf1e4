from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import ConfigError, PromptError, UnknownNameError
from addiffusion_env.prompts import PROMPT_SOURCES, PromptSource, TextFilePrompts, text_id


def write(folder: Path, data: bytes) -> Path:
    path = folder / "prompts.txt"
    path.write_bytes(data)
    return path


def test_reads_one_prompt_a_line(tmp_path: Path) -> None:
    data = "# my prompts\n\n  a red cup \r\n\na café by the sea\n   # not this one\na red cup\n"
    source = TextFilePrompts(write(tmp_path, data.encode()))
    assert [prompt.text for prompt in source] == ["a red cup", "a café by the sea"]
    assert source.prompts[0].prompt_id == text_id("a red cup")
    assert source.name == "prompts.txt"


def test_skips_a_byte_order_mark(tmp_path: Path) -> None:
    source = TextFilePrompts(write(tmp_path, b"\xef\xbb\xbfa dog"))
    assert [prompt.text for prompt in source] == ["a dog"]


def test_is_a_prompt_source(tmp_path: Path) -> None:
    source = PROMPT_SOURCES.load("text_file")(write(tmp_path, b"one\ntwo\nthree"))
    assert isinstance(source, PromptSource)
    assert [prompt.text for prompt in source.take(2)] == ["one", "two"]
    assert source.sample(np.random.default_rng(0)).text in {"one", "two", "three"}


def test_as_a_setting_it_needs_its_path() -> None:
    with pytest.raises(ConfigError, match=r"'text_file' needs 'path'\n  -> prompt_options=\{path: VALUE\}"):
        EnvSettings(prompts="text_file").prompt_source()


@pytest.mark.parametrize("data", [b"", b"\n\n", b"# only\n#comments"])
def test_refuses_a_file_without_prompts(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(PromptError, match=r"prompts\.txt holds no prompt"):
        TextFilePrompts(write(tmp_path, data))


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"no prompt file at .*absent\.txt"):
        TextFilePrompts(tmp_path / "absent.txt")


def test_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="cannot be read: Is a directory"):
        TextFilePrompts(tmp_path)


def test_refuses_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="not UTF-8: byte 0xe9 at offset 5"):
        TextFilePrompts(write(tmp_path, "a café".encode("latin-1")))


def test_a_split_is_stable_and_keeps_equal_texts_together(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"a photo of {n} dogs" for n in range(100)))
    whole = [prompt.text for prompt in TextFilePrompts(path)]
    train, test = ([prompt.text for prompt in TextFilePrompts(path, split)] for split in ("train", "test"))
    assert sorted(train + test) == sorted(whole) and 15 <= len(test) <= 35
    assert [text for text in whole if text in set(train)] == train  # in the order of the file
    path.write_text("\n".join(reversed(whole)) + "\na cat")
    assert {prompt.text for prompt in TextFilePrompts(path, "test")} - {"a cat"} == set(test)
    with pytest.raises(UnknownNameError, match="did you mean 'train'"):
        TextFilePrompts(path, "trian")

"""The readers of plain lists and tables: PartiPrompts, DrawBench, HPDv2, ImageReward, T2I-CompBench."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from addiffusion_env.errors import PromptError, UnknownNameError
from addiffusion_lab.benchmarks.lists import STYLES, DrawBenchPrompts, HPDv2Prompts, ImageRewardPrompts, PartiPrompts
from addiffusion_lab.benchmarks.t2i_compbench import CATEGORIES, T2ICompBenchPrompts

HEAD = "Prompt\tCategory\tChallenge\tNote\n"


def put(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# ------------------------------------------------------------------------------------------------ PartiPrompts


def test_parti_keeps_quotes_and_strips_ends(tmp_path: Path) -> None:
    rows = '"G I G G L E" painted\tArts\tWriting & Symbols\t\n A sloth, "slow" \tAnimals\tBasic\tsays "hi"\n'
    source = PartiPrompts(put(tmp_path, "p.tsv", HEAD + rows), partial=True)
    first, second = source
    assert first.text == '"G I G G L E" painted' and first.task == "Arts"
    assert first.metadata["challenge"] == "Writing & Symbols"
    assert second.text == 'A sloth, "slow"' and second.metadata["original"] == ' A sloth, "slow" '
    assert second.metadata["note"] == 'says "hi"' and second.metadata["index"] == 1


def test_parti_prompts_may_hold_line_separators_of_unicode(tmp_path: Path) -> None:
    rows = "a\u2028b\x0bc\tArts\tBasic\t\nd\tArts\tBasic\t\n"
    assert [p.text for p in PartiPrompts(put(tmp_path, "p.tsv", HEAD + rows), partial=True)] == ["a b c", "d"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "Prompt,Category,Challenge,Note\n",
            "line 1: expected the columns .* Note, got 'Prompt,Cat",
        ),
        ("", "line 1: expected the columns"),
        (HEAD, "holds no prompt"),
        (HEAD + "a\tArts\tBasic\t\n\na\tArts\n", "line 4: expected 4 fields separated by tabs, got 2"),
        (HEAD + "a\tb\tArts\tBasic\t\n", "line 2: expected 4 fields separated by tabs, got 5"),
        (HEAD + "\tArts\tBasic\t\n", "line 2: the prompt is empty"),
        (HEAD + "a\x1b[2J\tArts\tBasic\t\n", r"line 2: .*U\+001B"),
    ],
)
def test_parti_names_file_and_line(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=rf"p\.tsv.*{problem}"):
        PartiPrompts(put(tmp_path, "p.tsv", text), partial=True)


# ------------------------------------------------------------------------------------------------ DrawBench


@pytest.mark.parametrize("column", ["Prompts", "Prompt"])
def test_drawbench_reads_the_sheet_and_its_copies(column: str, tmp_path: Path) -> None:
    rows = f'{column},Category\nA red colored car.,Colors\n"A sign that says ""Hi"", big",Gary Marcus et al. \n,\n'
    source = DrawBenchPrompts(put(tmp_path, "drawbench.csv", rows.replace("\n", "\r\n")).parent, partial=True)
    assert [(prompt.text, prompt.task) for prompt in source] == [
        ("A red colored car.", "Colors"),
        ('A sign that says "Hi", big', "Gary Marcus et al."),
    ]


def test_drawbench_prompts_over_two_lines_are_one(tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", 'Prompts,Category\n"a\nb",Text\nc,Text\n"d\x00",Text\n')
    with pytest.raises(PromptError, match=r"d\.csv, line 5: .*U\+0000|line \d: not CSV: line contains NUL"):
        DrawBenchPrompts(path, partial=True)
    assert [
        p.text for p in DrawBenchPrompts(put(tmp_path, "d.csv", 'Prompts,Category\n"a\nb",Text\n'), partial=True)
    ] == ["a b"]


def test_the_short_copy_of_drawbench_is_refused(tmp_path: Path) -> None:
    rows = "Prompts,Category\n" + "".join(f"prompt {n},Colors\n" for n in range(110))
    with pytest.raises(PromptError, match="holds 110 prompts, published are 200"):
        DrawBenchPrompts(put(tmp_path, "d.csv", rows))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Text,Kind\na,b\n", "line 1: expected the columns Prompts and Category, got 'Text, Kind'"),
        ("Prompts,Category\na\n", "line 2: expected a prompt and a category, got 1 field"),
        ('Prompts,Category\n"a,b\n', "line 2: not CSV"),
        ("Prompts,Category\na,\n", "line 2: the prompt is empty"),
        ("Prompts,Category\n" + "x" * 200_000 + ",Text\n", "line 2: not CSV: field larger than field limit"),
        ("", "holds no prompt"),
    ],
)
def test_drawbench_names_file_and_line(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=rf"d\.csv.*{problem}"):
        DrawBenchPrompts(put(tmp_path, "d.csv", text), partial=True)


# ------------------------------------------------------------------------------------------------ HPDv2, ImageReward


def test_hpdv2_counts_within_styles_and_keeps_repeats(tmp_path: Path) -> None:
    for style in STYLES:
        put(tmp_path, f"benchmark/{style}.json", json.dumps(["a girl", "a girl", f"{style}\n"]))
    source = HPDv2Prompts(tmp_path, partial=True)
    assert [(prompt.task, prompt.metadata["index"]) for prompt in source] == [(s, n) for s in STYLES for n in range(3)]
    assert len({prompt.prompt_id for prompt in source}) == 12 and source.prompts[5].text == "concept-art"
    one = HPDv2Prompts(tmp_path / "benchmark" / "photo.json", partial=True)
    assert one.prompts == source.prompts[9:]
    with pytest.raises(PromptError, match="'photo' has 3, expected 800"):
        HPDv2Prompts(tmp_path / "benchmark" / "photo.json")


def test_hpdv2_names_what_is_missing_or_malformed(tmp_path: Path) -> None:
    put(tmp_path, "anime.json", '["a"]')
    with pytest.raises(PromptError, match=r"no concept-art\.json of HPDv2"):
        HPDv2Prompts(tmp_path, partial=True)
    with pytest.raises(PromptError, match=r"cats\.json is not a style of HPDv2"):
        HPDv2Prompts(put(tmp_path, "cats.json", "[]"), partial=True)
    with pytest.raises(PromptError, match=r"photo\.json: expected a JSON list of prompts, got dict"):
        HPDv2Prompts(put(tmp_path, "photo.json", "{}"), partial=True)
    with pytest.raises(PromptError, match=r"photo\.json, line 2: not JSON"):
        HPDv2Prompts(put(tmp_path, "photo.json", '["a",\n b]'), partial=True)
    with pytest.raises(PromptError, match=r"photo\.json, prompt 2: a prompt must be text, got int"):
        HPDv2Prompts(put(tmp_path, "photo.json", '["a", 2]'), partial=True)


def test_imagereward_takes_the_files_ids(tmp_path: Path) -> None:
    entries = [
        {"id": "005695-0057", "prompt": "a vehicle, cyberpunk "},
        {"id": "1-2", "prompt": "a vehicle, cyberpunk"},
    ]
    source = ImageRewardPrompts(put(tmp_path, "benchmark-prompts.json", json.dumps(entries)).parent, partial=True)
    assert [prompt.prompt_id for prompt in source] == ["imagereward-005695-0057", "imagereward-1-2"]
    assert source.prompts[0].text == "a vehicle, cyberpunk" and source.prompts[0].metadata["original"].endswith(" ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "expected a JSON list, got dict"),
        ('[{"prompt": "a"}]', "prompt 1: expected an object with id and prompt"),
        ('[{"id": "1", "prompt": "a"}, {"id": "1", "prompt": "b"}]', "prompt 2: the id '1' occurs twice"),
        ('[{"id": "1"}]', "prompt 1: a prompt must be text, got NoneType"),
    ],
)
def test_imagereward_names_the_place(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=problem):
        ImageRewardPrompts(put(tmp_path, "b.json", text), partial=True)


# ------------------------------------------------------------------------------------------------ T2I-CompBench


def compbench(folder: Path, suffix: str = "_val") -> Path:
    for category in CATEGORIES:
        put(folder, f"{category}{suffix}.txt", f"{category} one\r\n{category} two\r\n\r\n{category} three")
    return folder


def test_compbench_loses_no_last_line_and_keeps_no_line_end(tmp_path: Path) -> None:
    source = T2ICompBenchPrompts(compbench(tmp_path / "examples" / "dataset").parent.parent, partial=True)
    assert [prompt.text for prompt in source.prompts[:3]] == ["color one", "color two", "color three"]
    assert [prompt.task for prompt in source] == [category for category in CATEGORIES for _ in range(3)]
    assert [prompt.metadata["index"] for prompt in source.prompts[3:6]] == [0, 1, 2]
    with pytest.raises(PromptError, match="holds 24 prompts, published are 2400: 'color' has 3, expected 300"):
        T2ICompBenchPrompts(tmp_path)


def test_compbench_complex_prompts_have_their_kind(tmp_path: Path) -> None:
    compbench(tmp_path)
    put(tmp_path, "complex_val_spatial.txt", "complex one\r\n")
    put(tmp_path, "complex_val_action.txt", "complex two\r\n")
    source = T2ICompBenchPrompts(tmp_path, partial=True, categories=["complex", "color"])
    assert [prompt.metadata.get("kind") for prompt in source] == ["spatial", "action", None, None, None, None]
    put(tmp_path, "complex_val_spatialaction.txt", "complex two")
    with pytest.raises(PromptError, match=r"complex_val_spatialaction\.txt, line 1: the prompt is action already"):
        T2ICompBenchPrompts(tmp_path, partial=True)


def test_compbench_splits_and_categories(tmp_path: Path) -> None:
    compbench(tmp_path, "_train")
    put(tmp_path, "color_train.txt", "a cup\na cup\na cup\n")
    source = T2ICompBenchPrompts(tmp_path, partial=True, split="train", categories=["color", "color"])
    first = source.prompts[0].prompt_id
    assert [prompt.prompt_id for prompt in source] == [first, f"{first}-2", f"{first}-3"]
    with pytest.raises(UnknownNameError, match="did you mean 'val'"):
        T2ICompBenchPrompts(tmp_path, split="vall")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="did you mean 'texture'"):
        T2ICompBenchPrompts(tmp_path, categories=["textures"])


def test_compbench_reads_one_list_by_its_path(tmp_path: Path) -> None:
    one = T2ICompBenchPrompts(put(tmp_path, "color_val.txt", "a cup\n"))
    other = T2ICompBenchPrompts(put(tmp_path, "color_val_seen.txt", "a cup\n"))
    assert one.prompts[0].task == "color" and other.prompts[0].task == "color_val_seen"
    assert one.prompts[0].prompt_id != other.prompts[0].prompt_id
    with pytest.raises(PromptError, match=r"bad\.txt, line 2: .*U\+0007"):
        T2ICompBenchPrompts(put(tmp_path, "bad.txt", "a\n\x07b\n"))

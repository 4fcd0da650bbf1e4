"""Where benchmark files come from: paths, the hub, and what is said when they are not there or not as published."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from addiffusion_env.errors import ConfigError, MissingPackageError, PromptError, UnknownNameError
from addiffusion_env.prompts import BENCHMARKS, PROMPT_SOURCES, Prompt, PromptSource
from addiffusion_lab.benchmarks.base import PromptNumbering, check_counts, share_out
from addiffusion_lab.benchmarks.coco import CocoPrompts
from addiffusion_lab.benchmarks.geneval import GenEvalPrompts
from addiffusion_lab.benchmarks.lists import STYLES, DrawBenchPrompts, HPDv2Prompts, PartiPrompts
from addiffusion_lab.benchmarks.origin import HubOrigin, clean
from addiffusion_lab.benchmarks.t2i_compbench import T2ICompBenchPrompts

PARTI_HEAD = "Prompt\tCategory\tChallenge\tNote\n"


def parti(folder: Path, *rows: str) -> Path:
    path = folder / "PartiPrompts.tsv"
    path.write_bytes((PARTI_HEAD + "".join(f"{row}\n" for row in rows)).encode())
    return path


# ------------------------------------------------------------------------------------------------ paths


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_missing_path_says_what_to_download_from_where(name: str, tmp_path: Path) -> None:
    reader = BENCHMARKS.load(name)
    with pytest.raises(PromptError) as caught:
        reader(tmp_path / "absent")
    assert "absent" in caught.value.cause
    assert all(file in caught.value.remedy for file in reader.about.files) and "http" in caught.value.remedy
    with pytest.raises(PromptError) as caught:
        reader(tmp_path)  # there, but empty
    assert str(tmp_path) in caught.value.cause and reader.about.url in caught.value.remedy


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_benchmarks_are_prompt_sources_with_the_same_first_options(name: str) -> None:
    assert PROMPT_SOURCES[name] == BENCHMARKS[name]
    reader = BENCHMARKS.load(name)
    assert reader.about.name == name and sum(reader.about.counts.values()) >= 100


def test_the_folder_of_all_benchmarks_is_named_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parti").mkdir()
    parti(tmp_path / "parti", "bond\tAbstract\tBasic\t")
    monkeypatch.setenv("ADDIFFUSION_BENCHMARKS", str(tmp_path))
    source = PartiPrompts(partial=True)
    assert isinstance(source, PromptSource) and [prompt.text for prompt in source] == ["bond"]
    assert source.sample(np.random.default_rng(0)).text == "bond"
    monkeypatch.setenv("ADDIFFUSION_BENCHMARKS", str(tmp_path / "nowhere"))
    with pytest.raises(PromptError, match=r"no PartiPrompts at .*nowhere/parti"):
        PartiPrompts()


def test_a_checkout_of_the_authors_repository_will_do(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    entry = {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"}
    (tmp_path / "prompts" / "evaluation_metadata.jsonl").write_text(json.dumps(entry))
    assert [prompt.text for prompt in GenEvalPrompts(tmp_path, partial=True)] == ["a photo of a cow"]


def test_another_number_of_prompts_than_published_is_refused(tmp_path: Path) -> None:
    path = parti(tmp_path, "bond\tAbstract\tBasic\t", "a dog\tAnimal\tBasic\t")
    with pytest.raises(PromptError) as caught:
        PartiPrompts(path)
    assert "holds 2 prompts, published are 1632" in caught.value.cause
    assert "'Abstract' has 1, expected 51" in caught.value.cause and "'Animal' has 1, expected 0" in caught.value.cause
    assert "partial" in caught.value.remedy
    assert len(PartiPrompts(path, partial=True)) == 2


def test_equal_totals_with_other_tasks_are_refused() -> None:
    about = PartiPrompts.about
    prompts = [Prompt("a", "1", "x"), Prompt("b", "2", "x")]
    check_counts(prompts, {"x": 2}, about, "here")
    check_counts(prompts, {}, about, "here")
    with pytest.raises(PromptError, match="'x' has 2, expected 1; 'y' has 0, expected 1"):
        check_counts(prompts, {"x": 1, "y": 1}, about, "here")


def test_bytes_that_are_no_utf8_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "PartiPrompts.tsv"
    path.write_bytes(PARTI_HEAD.encode() + b"bond\tAbstract\tBasic\t\ncaf\xe9\tArts\tBasic\t\n")
    with pytest.raises(PromptError, match=r"PartiPrompts\.tsv, line 3: not UTF-8: byte 0xe9"):
        PartiPrompts(path, partial=True)


def test_a_byte_order_mark_is_no_part_of_the_head(tmp_path: Path) -> None:
    path = tmp_path / "windows.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + PARTI_HEAD.encode() + b"bond\tAbstract\tBasic\t\r\n")
    assert [prompt.text for prompt in PartiPrompts(path, partial=True)] == ["bond"]


def test_an_unknown_world_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'emoji'"):
        PartiPrompts(tmp_path, world="emojis")  # type: ignore[arg-type]


def test_prompts_that_the_emoji_world_knows_are_kept_and_judged(tmp_path: Path) -> None:
    path = parti(tmp_path, "a dragon\tAnimals\tBasic\t", "A red cup and a dog \tArtifacts\tBasic\tnote")
    (prompt,) = PartiPrompts(path, world="emoji", partial=True)
    plain = PartiPrompts(path, partial=True).prompts[1]
    assert prompt.prompt_id == plain.prompt_id and prompt.task == "Artifacts" and plain.requirements is None
    assert [group.name for group in prompt.requirements.groups] == ["cup", "dog"] and prompt.constraints == 3
    assert prompt.metadata["original"] == "A red cup and a dog " and prompt.metadata["note"] == "note"
    with pytest.raises(PromptError, match="none of 1 prompts is one that the emoji world knows"):
        PartiPrompts(parti(tmp_path, "a dragon\tAnimals\tBasic\t"), world="emoji", partial=True)


# ------------------------------------------------------------------------------------------------ text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a dog\n", "a dog"),
        ("a\r\n dog\tand\u2028a\x85cat", "a  dog and a cat"),
        ("two  blanks", "two  blanks"),
        ("<script>alert(1)</script> & [bold]", "<script>alert(1)</script> & [bold]"),
        ("../../etc/passwd", "../../etc/passwd"),
        ("a \N{MAN}\u200d\N{PERSONAL COMPUTER} ﬁ", "a \N{MAN}\u200d\N{PERSONAL COMPUTER} ﬁ"),
    ],
)
def test_clean_keeps_what_is_harmless(text: str, cleaned: str) -> None:
    assert clean(text, "here") == cleaned


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a\x00b", r"here: .*U\+0000"),
        ("\x1b[2Jgone", r"here: .*U\+001B"),
        ("\ud800", r"here: .*U\+D800"),
        (" \n", "here: the prompt is empty"),
        (None, "here: a prompt must be text, got NoneType"),
        (["a"], "here: a prompt must be text, got list"),
    ],
)
def test_clean_refuses_what_breaks_terminals_hashes_and_files(value: object, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        clean(value, "here")


# ------------------------------------------------------------------------------------------------ subsets and ids


def test_ids_are_of_task_and_text_and_tell_repeats_apart() -> None:
    number = PromptNumbering("x")
    first, other, again, third = number("a dog"), number("a dog", "color"), number("a dog"), number("a dog")
    assert len({first, other, again, third}) == 4 and (again, third) == (f"{first}-2", f"{first}-3")
    assert PromptNumbering("x")("a dog") == first and PromptNumbering("y")("a dog") != first
    assert first == "x-" + first.rpartition("-")[2]


def test_a_subset_keeps_every_tasks_share_in_published_order(tmp_path: Path) -> None:
    rows = [f"a{n}\tAnimals\tBasic\t" for n in range(30)] + [f"b{n}\tArts\tBasic\t" for n in range(10)]
    source = PartiPrompts(parti(tmp_path, *rows), partial=True)
    taken = source.take(8)
    assert [prompt.task for prompt in taken] == ["Animals"] * 6 + ["Arts"] * 2
    places = [prompt.metadata["index"] for prompt in taken]
    assert places == sorted(places) and taken == source.take(8) and taken != source.take(8, seed=1)
    assert all(prompt in source.take(16) for prompt in taken)
    assert source.take(40) == source.prompts == source.take(99, seed=3)
    assert source.take(0) == []
    with pytest.raises(ConfigError, match="count must be at least 0"):
        source.take(-1)


def test_a_subset_does_not_depend_on_what_else_the_task_order_holds(tmp_path: Path) -> None:
    rows = [f"a{n}\tAnimals\tBasic\t" for n in range(9)]
    source = PartiPrompts(parti(tmp_path, *rows), partial=True)
    turned = PartiPrompts(parti(tmp_path, *reversed(rows)), partial=True)
    assert {p.prompt_id for p in source.take(4, 7)} == {p.prompt_id for p in turned.take(4, 7)}
    assert source.digest != turned.digest and len(source.digest) == 64


def test_shares_add_up() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = {str(n): int(size) for n, size in enumerate(rng.integers(1, 50, int(rng.integers(1, 8))))}
        count = int(rng.integers(0, sum(sizes.values()) + 1))
        shares = share_out(count, sizes)
        assert sum(shares.values()) == count
        assert all(abs(shares[n] - count * sizes[n] / sum(sizes.values())) < 1 for n in sizes)
        assert all(0 <= shares[n] <= sizes[n] for n in sizes)


# ------------------------------------------------------------------------------------------------ the hub


class FakeHub(types.ModuleType):
    """Stands for ``datasets`` at its boundary: says what was asked for, or fails as the network would."""

    def __init__(self, answer: Any) -> None:
        super().__init__("datasets")
        self.asked: list[tuple[Any, ...]] = []
        self.answer = answer

    def load_dataset(self, *arguments: Any, **options: Any) -> Any:
        self.asked.append((*arguments, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_original_files_are_fetched_at_the_pinned_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    text = PARTI_HEAD + '"G I G" painted\tArts\tBasic\t\n'
    monkeypatch.setitem(sys.modules, "datasets", hub := FakeHub({"text": [text]}))
    source = PartiPrompts("hub", partial=True)
    assert [prompt.text for prompt in source] == ['"G I G" painted']
    address = "hf://datasets/nateraw/parti-prompts@944b156abfdad7627c3221b5ec4f6a6fb060a197/PartiPrompts.tsv"
    assert hub.asked == [("text", {"data_files": address, "sample_by": "document", "split": "train"})]
    assert source.origin == "hub:nateraw/parti-prompts@944b156abfdad7627c3221b5ec4f6a6fb060a197"
    PartiPrompts("hub:me/mine", partial=True)
    assert hub.asked[-1][1]["data_files"] == "hf://datasets/me/mine/PartiPrompts.tsv"


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match=r"needs the package datasets(.|\n)*addiffusion-env\[benchmarks\]"):
        PartiPrompts("hub")


def test_an_unreachable_hub_says_what_to_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeHub(ConnectionError("Couldn't reach the Hub\nand more")))
    with pytest.raises(PromptError) as caught:
        HPDv2Prompts("hub")
    assert "cannot be loaded: ConnectionError: Couldn't reach the Hub" in caught.value.cause
    assert "and more" not in caught.value.cause and "anime.json" in caught.value.remedy


@pytest.mark.parametrize("path", ["hub:parti", "hub:a/b/c", "hub:../x", "hub:a b/c", "hub:a/b@"])
def test_odd_repositories_are_refused_before_anything_is_asked(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", hub := FakeHub({}))
    with pytest.raises(PromptError):
        PartiPrompts(path)
    assert all(":" not in str(asked) or path != "hub:parti" for asked in hub.asked)


def test_a_benchmark_without_a_repository_says_so() -> None:
    with pytest.raises(PromptError, match="no hub repository of GenEval is known"):
        GenEvalPrompts("hub")


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that ``datasets`` itself reads as a repository."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "repository").mkdir()
    return tmp_path / "repository"


def test_datasets_gives_original_files_unchanged(local_hub: Path) -> None:
    parti(local_hub, '"G I G" painted\tArts\tBasic\t', "a sloth \tAnimals\tBasic\tx")
    (local_hub / "benchmark").mkdir()
    for style in STYLES:
        (local_hub / "benchmark" / f"{style}.json").write_text(json.dumps([f"{style} one", "two"]))
    entry = {
        "tag": "position",
        "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a dog right of a teddy bear",
    }
    (local_hub / "evaluation_metadata.jsonl").write_text(json.dumps(entry))
    path = f"hub:{local_hub}"
    assert [prompt.text for prompt in PartiPrompts(path, partial=True)] == ['"G I G" painted', "a sloth"]
    hpd = HPDv2Prompts(path, partial=True)
    assert [prompt.text for prompt in hpd.prompts[2:4]] == ["concept-art one", "two"] and len(hpd) == 8
    # As a table of datasets, the mixed list ["right of", 0] cannot even be held.
    assert GenEvalPrompts(path, partial=True).prompts[0].metadata["entry"] == entry


def test_datasets_tables_are_read_by_their_columns(local_hub: Path) -> None:
    (local_hub / "data.csv").write_text('Prompts,Category\n"a red, round car",Colors\na dog,Gary Marcus et al. \n')
    drawn = DrawBenchPrompts(f"hub:{local_hub}", partial=True)
    assert [(prompt.text, prompt.task) for prompt in drawn] == [
        ("a red, round car", "Colors"),
        ("a dog", "Gary Marcus et al."),
    ]
    with pytest.raises(PromptError, match="has the columns Prompts, Category, not caption"):
        CocoPrompts(f"hub:{local_hub}", partial=True)


def test_datasets_configurations_are_t2i_compbench_lists(local_hub: Path) -> None:
    (local_hub / "c.txt").write_text("a green bench and a blue bowl\n\ntwo boys")
    (local_hub / "README.md").write_text("---\nconfigs:\n- config_name: color_val\n  data_files: c.txt\n---\n")
    source = T2ICompBenchPrompts(f"hub:{local_hub}", partial=True, categories=["color"])
    assert [prompt.text for prompt in source] == ["a green bench and a blue bowl", "two boys"]


def test_a_table_with_two_splits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeHub({"train": [], "test": []}))
    with pytest.raises(PromptError, match="has the splits train, test, expected one"):
        list(HubOrigin("a/b", DrawBenchPrompts.about).rows(["Prompts"]))

"""Exports, read back by the rules of the official scorers."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image
from test_benchmark_geneval import ENTRIES, write

from addiffusion_env.errors import ConfigError, PromptError, RunFolderError, UnknownNameError
from addiffusion_env.prompts import Prompt
from addiffusion_lab.benchmarks.export import MAX_NAME_BYTES, export, t2i_compbench_name
from addiffusion_lab.benchmarks.geneval import GenEvalPrompts
from addiffusion_lab.benchmarks.t2i_compbench import T2ICompBenchPrompts


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def shade(path: str) -> int:
    with Image.open(path) as image:
        return image.getpixel((0, 0))[0]


def geneval_reads(folder: Path) -> dict[str, list[int]]:
    """What GenEval's evaluate_images.py would judge: prompt -> shades (traversal as in djghosh13/geneval@af4902f)."""
    found: dict[str, list[int]] = {}
    for subfolder in os.listdir(folder):
        path = os.path.join(folder, subfolder)
        if not os.path.isdir(path) or not subfolder.isdigit():
            continue
        with open(os.path.join(path, "metadata.jsonl"), encoding="ascii") as file:
            metadata = json.load(file)
        names = [name for name in os.listdir(os.path.join(path, "samples")) if re.match(r"\d+\.png", name)]
        found[metadata["prompt"]] = [shade(os.path.join(path, "samples", name)) for name in sorted(names)]
        assert metadata["tag"] and metadata["include"]
    return found


def test_geneval_layout_is_what_the_official_scorer_reads(tmp_path: Path) -> None:
    entries = [*ENTRIES, {**ENTRIES[0], "prompt": "a photo of a café"}]
    source = GenEvalPrompts(write(tmp_path, *entries), partial=True)
    images = [(prompt, [png(10 * n + copy) for copy in range(4)]) for n, prompt in enumerate(source)]
    done = export("geneval", images, tmp_path / "out")
    assert (done.prompts, done.images, done.notes) == (8, 32, ()) and str(tmp_path / "out") in done.command
    assert geneval_reads(tmp_path / "out") == {
        entry["prompt"]: [10 * n + copy for copy in range(4)] for n, entry in enumerate(entries)
    }
    assert (tmp_path / "out" / "00003" / "samples" / "0000.png").is_file()
    assert json.loads((tmp_path / "out" / "00003" / "metadata.jsonl").read_text()) == ENTRIES[3]
    assert export("geneval", images, tmp_path / "out") == done  # again, over the same files


def test_emoji_prompts_are_exported_under_their_published_place(tmp_path: Path) -> None:
    source = GenEvalPrompts(write(tmp_path, *ENTRIES), world="emoji", partial=True)
    done = export("geneval", [(prompt, [png(7)]) for prompt in source.take(2)], tmp_path / "out")
    places = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert places == [f"{prompt.metadata['index']:05d}" for prompt in source.take(2)]
    assert done.notes == ("1 images per prompt, published numbers use 4",)


def compbench(tmp_path: Path, text: str = "a green bench and a blue bowl\ntwo boys.\n") -> T2ICompBenchPrompts:
    path = tmp_path / "color_val.txt"
    path.write_text(text)
    return T2ICompBenchPrompts(path)


def test_compbench_names_give_back_prompt_and_number(tmp_path: Path) -> None:
    source = compbench(tmp_path)
    images = [(prompt, [png(10 * n + copy) for copy in range(10)]) for n, prompt in enumerate(source)]
    done = export("t2i_compbench", images, tmp_path / "out")
    assert done.images == 20 and done.notes == ()
    samples = tmp_path / "out" / "color" / "samples"
    for name in os.listdir(samples):
        number = int(name.rpartition("_")[2].removesuffix(".png"))
        assert name.split("_")[0] == source.prompts[number // 10].text  # as the scorers recover the prompt
        assert shade(str(samples / name)) == number and re.fullmatch(r"\d{6}", name[-10:-4])


@pytest.mark.parametrize("text", ["snake_case", "a cup/saucer", "..\\up", "../../etc/passwd", "a\x00b", "a\nb"])
def test_prompts_that_a_file_name_cannot_carry_are_refused(text: str) -> None:
    with pytest.raises(PromptError, match="cannot recover it from a file name"):
        t2i_compbench_name(text, 0, 10, 0)


def test_names_end_at_what_file_systems_hold(tmp_path: Path) -> None:
    fits = "é" * 122
    assert len(t2i_compbench_name(fits, 0, 1, 0).encode()) == MAX_NAME_BYTES
    export("t2i_compbench", [(compbench(tmp_path, fits).prompts[0], [png(0)])], tmp_path / "out")
    for text in (fits + "é", "x" * 100_000):
        with pytest.raises(PromptError, match="gives a file name of"):
            t2i_compbench_name(text, 0, 1, 0)


def test_nothing_is_written_outside_or_in_part_when_a_prompt_does_not_fit(tmp_path: Path) -> None:
    source = compbench(tmp_path, "a cup\n../../x\n")
    with pytest.raises(PromptError):
        export("t2i_compbench", [(prompt, [png(0)]) for prompt in source], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    forged = Prompt("a cup", "t2i_compbench-1", "../../evil", metadata={"index": 0})
    with pytest.raises(PromptError, match="is not from t2i_compbench"):
        export("t2i_compbench", [(forged, [png(0)])], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["color_val.txt"]


def test_strange_files_would_be_scored_so_they_are_refused(tmp_path: Path) -> None:
    source = GenEvalPrompts(write(tmp_path, *ENTRIES), partial=True)
    many = [(prompt, [png(1), png(2)]) for prompt in source]
    export("geneval", many, tmp_path / "out")
    with pytest.raises(RunFolderError, match=r"contains 7 other files, for example 00000/samples/0001\.png"):
        export("geneval", [(prompt, files[:1]) for prompt, files in many], tmp_path / "out")


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    prompts = GenEvalPrompts(write(tmp_path, *ENTRIES), partial=True).prompts
    with pytest.raises(UnknownNameError, match="did you mean 'geneval'"):
        export("gen_eval", [], tmp_path / "out")
    with pytest.raises(ConfigError, match="no images"):
        export("geneval", [], tmp_path / "out")
    with pytest.raises(ConfigError, match="between 1 and 2 images"):
        export("geneval", [(prompts[0], [png(1)]), (prompts[1], [png(1)] * 2)], tmp_path / "out")
    with pytest.raises(ConfigError, match="is not a PNG file"):
        export("geneval", [(prompts[0], [b"\xff\xd8\xff jpeg"])], tmp_path / "out")
    with pytest.raises(PromptError, match="is not from geneval"):
        export("geneval", [(Prompt.of("a dog"), [png(1)])], tmp_path / "out")
    with pytest.raises(PromptError, match="two images have the name"):
        export("geneval", [(prompts[0], [png(1)])] * 2, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        export("geneval", [(prompts[0], [png(1)])], tmp_path / "file")

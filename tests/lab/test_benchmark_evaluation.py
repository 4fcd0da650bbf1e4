"""Public benchmarks through eval_sb3.py: chosen by name, judged in the emoji world, exported for official scorers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from addiffusion_env.config import check_overrides
from addiffusion_env.errors import ConfigError, PromptError, UnknownNameError
from addiffusion_env.evaluation.choices import choose_prompts, take_prompts
from addiffusion_env.evaluation.manifest import read_manifest
from addiffusion_env.evaluation.records import prompt_key, uid_of
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.prompts import Prompt, PromptList
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts
from addiffusion_lab.benchmarks.export import check_export, export_run
from addiffusion_lab.benchmarks.geneval import GenEvalPrompts

ROOT = Path(__file__).parent.parent.parent
LINES = (
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"},
    {
        "tag": "position",
        "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a dog right of a teddy bear",
    },
)


@pytest.fixture
def geneval(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)))
    return path


def config(**changes: Any) -> dict[str, Any]:
    import eval_sb3

    return {**eval_sb3.defaults(), **changes}


def test_without_a_benchmark_the_prompt_source_counts() -> None:
    assert choose_prompts(config(), "emoji") == ("emoji", {"split": "test"})


def test_a_benchmark_is_told_in_the_words_of_the_backbones_world() -> None:
    wanted = config(benchmark="geneval", benchmark_path="here", benchmark_options={"partial": True})
    assert choose_prompts(wanted, "emoji") == ("geneval", {"path": "here", "world": "emoji", "partial": True})
    assert choose_prompts(wanted, "sdxl")[1]["world"] == "any"
    assert choose_prompts({**wanted, "benchmark_options": {"world": "any"}}, "emoji")[1]["world"] == "any"


@pytest.mark.parametrize("name", ["genevl", "emoji", "text_file"])
def test_what_is_no_benchmark_gets_the_nearest(name: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown benchmark"):
        choose_prompts(config(benchmark=name), "emoji")


def test_a_list_is_taken_whole_and_a_grammar_in_part(geneval: Path) -> None:
    prompts, told = take_prompts(EmojiPrompts("test"), config())
    assert len(prompts) == told["prompts"] == 128 and "benchmark_list" not in told
    prompts, told = take_prompts(PromptList([f"prompt {n}" for n in range(200)]), config())
    assert len(prompts) == 200
    source = GenEvalPrompts(geneval, partial=True)
    prompts, told = take_prompts(source, config())
    assert prompts == source.prompts and told["benchmark_list"]["sha256"] == source.digest
    assert take_prompts(source, config(prompts=2))[1]["prompts"] == 2


@pytest.mark.parametrize(
    "overrides",
    [
        ["benchmark=geneval", "backbone=emoji"],
        ["benchmark=parti", "benchmark_path=hub:nateraw/parti-prompts@944b156a", "backbone=sd15", "prompts=10"],
        ["benchmark=t2i_compbench", "benchmark_path=../shared/benchmarks/t2i_compbench", "evaluation=sdxl"],
        ["benchmark=coco", "benchmark_options={count: 100, subset_seed: 1}"],
    ],
)
def test_the_command_line_takes_benchmarks(overrides: list[str]) -> None:
    check_overrides(ROOT / "configs", "eval", overrides)


def test_a_mistyped_backbone_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="configs/backbone has no option 'emojis'\n  -> did you mean 'emoji'"):
        check_overrides(ROOT / "configs", "eval", ["backbone=emojis"])


def test_an_export_without_a_layout_is_refused_before_the_run() -> None:
    check_export("geneval")
    for name in ("parti", None):
        with pytest.raises(UnknownNameError, match="unknown official layout"):
            check_export(name)


@pytest.mark.slow
def test_geneval_runs_on_the_emoji_world_and_is_exported(geneval: Path, tmp_path: Path) -> None:
    import eval_sb3

    wanted = config(
        benchmark="geneval",
        benchmark_path=str(geneval),
        benchmark_options={"partial": True},
        benchmark_export=True,
        samplers=["fixed:1", "fixed:2"],
        seeds=[0, 3],
        filmstrips=False,
        progress_bar=False,
        out=str(tmp_path / "out"),
    )
    eval_sb3.evaluate(wanted)
    manifest = read_manifest(tmp_path / "out")
    source = GenEvalPrompts(geneval, world="emoji", partial=True)
    assert manifest.prompt_ids == tuple(prompt.prompt_id for prompt in source)
    assert manifest.settings["benchmark_list"] == source.record() and source.record()["listed"] == 3
    store = RecordStore(tmp_path / "out" / "records")
    records = store.read()
    assert len(records) == 8 and all(record.correct is not None for record in records)  # judged by the detector

    folders = sorted((tmp_path / "out" / "official").iterdir())
    assert [folder.name for folder in folders] == ["00-fixed-1", "01-fixed-2"]
    assert sorted(path.name for path in folders[0].iterdir()) == ["00001", "00002"]  # the bench is not of that world
    for sampler, folder in zip(manifest.samplers, folders, strict=True):
        for prompt in source:
            made = folder / f"{prompt.metadata['index']:05d}"
            assert json.loads((made / "metadata.jsonl").read_text()) == LINES[prompt.metadata["index"]]
            for number, seed in enumerate((0, 3)):
                uid = uid_of(sampler.variant, prompt_key(prompt), seed)
                data = (made / "samples" / f"{number:04d}.png").read_bytes()
                assert store.images([uid]) == {uid: data}
                assert Image.open(io.BytesIO(data)).size == (64, 64)

    for path in (tmp_path / "out" / "records").glob("images-*"):
        path.unlink()
    with pytest.raises(ConfigError, match="4 of 4 images of fixed:1 were not kept"):
        export_run(tmp_path / "out", "geneval", source.prompts)


def test_a_benchmark_that_the_emoji_world_lacks_is_refused(tmp_path: Path) -> None:
    import eval_sb3

    path = tmp_path / "photo.json"
    path.write_text('["a dragon"]')
    wanted = config(
        benchmark="hpdv2", benchmark_path=str(path), benchmark_options={"partial": True}, out=str(tmp_path / "out")
    )
    with pytest.raises(PromptError, match="none of 1 prompts is one that the emoji world knows"):
        eval_sb3.evaluate(wanted)


def test_a_backbones_settings_of_training_stay_out_of_an_evaluation() -> None:
    import eval_sb3

    assert {"benchmark", "benchmark_path", "samplers"} <= set(eval_sb3.defaults())
    assert not {"lanes", "run_dir", "hydra", "defaults"} & set(eval_sb3.defaults())


def test_prompts_of_other_sources_are_not_exported(tmp_path: Path) -> None:
    from addiffusion_lab.benchmarks.export import export

    with pytest.raises(PromptError, match="generate the images with benchmark=geneval"):
        export("geneval", [(Prompt.of("a dog"), [b"\x89PNG\r\n\x1a\n"])], tmp_path / "out")

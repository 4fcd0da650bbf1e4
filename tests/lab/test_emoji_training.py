"""Every stage, for two steps at batch 4: it runs, and its files load in the classes that load the shipped ones."""

from __future__ import annotations

import json
import math
import operator
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from addiffusion_env.backbones.emoji import WEIGHTS, verify
from addiffusion_env.backbones.emoji.detector import STRIDE, load_detector
from addiffusion_env.backbones.emoji.objects import load_object_reader
from addiffusion_env.errors import ConfigError, NumericsError, ResumeError, UnknownNameError, WeightsError
from addiffusion_env.prompts.emoji_grammar import parse, scene_key
from addiffusion_lab.emoji_training import STAGES
from addiffusion_lab.emoji_training.__main__ import build_parser, main, run_stage
from addiffusion_lab.emoji_training.config import STAGE_DEFAULTS, TrainReport, budgeted_steps, rate_factor, stage_config
from addiffusion_lab.emoji_training.data import augment, degrade, draw_chunks, scene_bank, tokenize
from addiffusion_lab.emoji_training.detection import focal_loss, targets_of
from addiffusion_lab.emoji_training.distillation import random_crop
from addiffusion_lab.emoji_training.latent_diffusion import CHECKPOINT
from addiffusion_lab.emoji_training.layouts import sample_scenes
from addiffusion_lab.emoji_training.preference import ranking_loss, twin
from addiffusion_lab.emoji_training.renderer import Renderer, empty_layout

TINY: dict[str, Any] = {"steps": 2, "batch": 4, "scenes": 8, "redrawn": 16, "device": "cpu", "log_every": 0}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, TrainReport]]:
    """A folder that every stage has written to, in the registry's order."""
    out = tmp_path_factory.mktemp("emoji") / "weights"
    return out, {stage: run_stage(stage, out, **TINY) for stage in STAGES}


def load_clip(folder: Path) -> Any:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    config = json.loads((folder / "open_clip_config.json").read_text())
    towers = CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
    model = CLIP(config["embed_dim"], *towers)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def pretrained(library: str, name: str) -> Callable[[Path], Any]:
    return lambda folder: getattr(__import__(library), name).from_pretrained(folder)


LOADERS: dict[str, Callable[[Path], Any]] = {
    "tokenizer": pretrained("transformers", "CLIPTokenizer"),
    "scheduler": pretrained("diffusers", "DDIMScheduler"),
    "vae": pretrained("diffusers", "AutoencoderKL"),
    "preview": pretrained("diffusers", "AutoencoderTiny"),
    "unet": pretrained("diffusers", "UNet2DConditionModel"),
    "text_encoder": pretrained("transformers", "CLIPTextModel"),
    "dino": pretrained("transformers", "Dinov2Model"),
    "image_reward": pretrained("transformers", "BlipForImageTextRetrieval"),
    "clip": load_clip,
    "objects": lambda folder: load_object_reader(folder.parent),
    "detector_a": lambda folder: load_detector(folder.parent),
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_stage_reports_a_finite_loss(trained: tuple[Path, dict[str, TrainReport]], stage: str) -> None:
    report = trained[1][stage]
    assert math.isfinite(report.loss)
    assert all(math.isfinite(value) for value in report.metrics.values())
    assert report.steps == (1 if stage == "tokenizer" else 2)
    assert report.folder.is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("component", LOADERS)
def test_output_loads_as_the_shipped_weights_do(trained: tuple[Path, dict[str, TrainReport]], component: str) -> None:
    ours, shipped = LOADERS[component](verify(trained[0], component)), LOADERS[component](WEIGHTS / component)
    assert type(ours) is type(shipped)
    if isinstance(ours, torch.nn.Module):
        shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (ours, shipped)]
        assert shapes[0] == shapes[1]
        assert all(torch.isfinite(value).all() for value in ours.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize("component", sorted(set(LOADERS) - {"tokenizer", "scheduler"}))
def test_files_are_the_shipped_ones_in_name_and_precision(
    trained: tuple[Path, dict[str, TrainReport]], component: str
) -> None:
    ours, shipped = trained[0] / component, WEIGHTS / component
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in shipped.iterdir())
    (ours_file,), (shipped_file,) = (list(folder.glob("*.safetensors")) for folder in (ours, shipped))
    dtypes = [{name: value.dtype for name, value in load_file(path).items()} for path in (ours_file, shipped_file)]
    assert dtypes[0] == dtypes[1]


@pytest.mark.slow
def test_tokenizer_is_the_shipped_one(trained: tuple[Path, dict[str, TrainReport]]) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        ours, shipped = (json.loads((folder / "tokenizer" / name).read_text()) for folder in (trained[0], WEIGHTS))
        assert ours == shipped
    assert trained[1]["tokenizer"].loss == 0  # every word of the grammar is one token


@pytest.mark.slow
def test_tokens_of_a_prompt(trained: tuple[Path, dict[str, TrainReport]]) -> None:
    tokenizer = LOADERS["tokenizer"](trained[0] / "tokenizer")
    ids = tokenize(tokenizer, ["a photo of two red cups", ""])
    assert ids.shape == (2, 32)
    assert (ids != tokenizer.eos_token_id).sum(1).tolist() == [7, 1]


@pytest.mark.slow
def test_vae_decoder_stage_keeps_the_encoder(trained: tuple[Path, dict[str, TrainReport]], tmp_path: Path) -> None:
    shutil.copytree(trained[0] / "vae", tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    start, scale = load_file(file), LOADERS["vae"](tmp_path / "vae").config.scaling_factor
    run_stage("vae_decoder", tmp_path, **{**TINY, "lr": 1e-2})
    end = load_file(file)
    assert {name.split(".")[0] for name in start if not torch.equal(start[name], end[name])} == {
        "decoder",
        "post_quant_conv",
    }
    assert LOADERS["vae"](tmp_path / "vae").config.scaling_factor == scale


@pytest.mark.slow
def test_unet_resumes(trained: tuple[Path, dict[str, TrainReport]]) -> None:
    before = torch.load(trained[0] / CHECKPOINT, weights_only=True)
    report = run_stage("unet", trained[0], **TINY, resume=True)
    after = torch.load(trained[0] / CHECKPOINT, weights_only=True)
    assert (before["step"], after["step"], report.metrics["total_steps"]) == (2, 4, 4)
    assert after["optimizer"]["state"][0]["step"] == 4
    assert not torch.equal(before["models"]["unet.conv_in.weight"], after["models"]["unet.conv_in.weight"])


@pytest.mark.slow
def test_unet_refuses_to_resume_from_nothing(trained: tuple[Path, dict[str, TrainReport]], tmp_path: Path) -> None:
    (tmp_path / "tokenizer").symlink_to(trained[0] / "tokenizer")
    config = stage_config("unet", tmp_path, **TINY, resume=True)
    with pytest.raises(ResumeError, match=f"no checkpoint at .*{CHECKPOINT}"):
        STAGES.load("unet")(config)
    torch.save({"models": {}, "optimizer": {}}, tmp_path / CHECKPOINT)
    with pytest.raises(ResumeError, match="is not a checkpoint of this model"):
        STAGES.load("unet")(config)


@pytest.mark.parametrize(
    ("stage", "first"),
    [
        ("vae_decoder", "vae"),
        ("preview", "vae"),
        ("unet", "tokenizer"),
        ("clip", "tokenizer"),
        ("preference", "tokenizer"),
    ],
)
def test_stage_names_what_it_needs(tmp_path: Path, stage: str, first: str) -> None:
    with pytest.raises(WeightsError, match=f"reads what stage {first} writes") as caught:
        run_stage(stage, tmp_path, **TINY)
    assert f"python -m addiffusion_lab.emoji_training {first} --out" in caught.value.remedy


def test_one_seed_is_one_model_and_the_global_generator_is_untouched(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    files = []
    for folder, seed in (("one", 0), ("two", 0), ("three", 1)):
        run_stage("detector", tmp_path / folder, **TINY, seed=seed)
        files.append((tmp_path / folder / "detector_a" / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]
    assert torch.equal(state, torch.get_rng_state())


def test_detector_learns(tmp_path: Path) -> None:
    settings = {**TINY, "lr": 2e-3}
    start = run_stage("detector", tmp_path, **{**settings, "steps": 1})
    end = run_stage("detector", tmp_path, **{**settings, "steps": 10})
    assert end.loss < start.loss / 3


def test_a_diverging_stage_stops(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match="stage detector_a: the loss is"):
        run_stage("detector", tmp_path, **{**TINY, "steps": 6, "lr": 1e30})


# ---------------------------------------------------------------------------------------------- settings and clock


def test_defaults_cover_the_stages() -> None:
    assert set(STAGE_DEFAULTS) == set(STAGES)
    for stage in STAGES:
        config = stage_config(stage, "out")
        assert (config.seconds is None) != (config.steps is None)
        assert stage_config(stage, "out", steps=3).seconds is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"steps": 2, "seconds": 3.0}, "exactly one budget, got seconds=3.0, steps=2"),
        ({"batch": 0}, "batch must be positive, got 0"),
        ({"lr": -1.0}, "lr must be positive, got -1.0"),
        ({"lr": float("nan")}, "lr must be positive, got nan"),
    ],
)
def test_bad_settings(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stage_config("vae", "out", **overrides)


def test_unknown_stage() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'unet'"):
        stage_config("unets", "out")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer", "--out", str(tmp_path)]) == 0
    assert verify(tmp_path, "tokenizer").is_dir()
    assert main(["clip", "--out", str(tmp_path / "empty")]) == 2
    assert "WeightsError" in capsys.readouterr().err
    options = build_parser().parse_args(["unet", "--out", "x", "--no-anneal"])
    assert (options.anneal, options.resume, options.batch) == (False, None, None)


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def test_clock_counts_steps_and_sets_the_rate() -> None:
    sgd, rates = optimizer(), []
    for tick in budgeted_steps(sgd, lr=2.0, steps=10, warm=0.2, tail=0.5):
        assert tick == (len(rates) + 1, len(rates) / 10)
        rates.append(sgd.param_groups[0]["lr"])
    assert len(rates) == 10
    assert rates[:3] == [0.02, 1.0, 2.0]
    assert rates[5] == 2.0
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[9] == pytest.approx(2 * rate_factor(0.9, 0.2, 0.5))


def test_clock_stops_in_time() -> None:
    ticks = list(budgeted_steps(optimizer(), lr=1.0, seconds=0.05))
    assert ticks[-1].progress < 1
    assert ticks[-1].step == len(ticks) > 10


# ---------------------------------------------------------------------------------------------- data and losses


def test_chunks_do_not_depend_on_workers() -> None:
    draw = operator.mul  # depends on both arguments; a worker process need not import torch for it
    assert draw_chunks(lambda count, seed: count, 5000, 0, "test") == [4096, 904]
    alone = draw_chunks(draw, 5000, 0, "test", workers=1)
    assert draw_chunks(draw, 5000, 0, "test", workers=2) == alone
    assert draw_chunks(draw, 5000, 0, "other") != alone


def test_scene_bank_holds_what_was_asked_for() -> None:
    bank = scene_bank(stage_config("clip", "out", scenes=20), "clip", torch.device("cpu"))
    assert len(bank.texts) == 20
    assert bank.layouts.shape == (20, 4, 5)
    for text, rows in zip(bank.texts, bank.layouts, strict=True):
        scene = parse(text)
        assert scene is not None
        assert int((rows[:, 0] >= 0).sum()) == scene.object_count


@pytest.mark.parametrize("change", [augment, degrade, random_crop])
def test_image_changes_are_seeded_and_keep_the_shape(change: Callable[..., torch.Tensor]) -> None:
    images = Renderer()(sample_scenes(16, seed=0)[1], torch.Generator().manual_seed(0))
    one, same, other = (change(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == images.shape
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert 0.001 < (one - images).abs().mean() < 0.5


def test_twins_contradict_their_scene() -> None:
    rng = np.random.default_rng(0)
    for scene in sample_scenes(2000, seed=9)[0]:
        other = twin(scene, rng)
        assert scene_key(other) != scene_key(scene)
        assert parse(other.text) == other


def test_targets_mark_every_centre() -> None:
    layouts = empty_layout(2)
    layouts[0, 0], layouts[0, 1] = (36, 1, 16, 20, 26), (36, 0, 46, 44, 26)
    layouts[1, 0] = (13, 5, 32, 32, 40)
    target = targets_of(torch.from_numpy(layouts))
    assert target.cells.tolist() == [[0, 20 // STRIDE, 16 // STRIDE], [0, 44 // STRIDE, 46 // STRIDE], [1, 8, 8]]
    assert target.colors.tolist() == [1, 0, 5]
    assert (target.heat == 1).nonzero().tolist() == [[0, 36, 5, 4], [0, 36, 11, 11], [1, 13, 8, 8]]
    assert target.heat[0, 13].max() == 0
    # A larger sprite has the wider Gaussian, and Gaussians decrease around the centre.
    assert target.heat[1, 13, 8, 10] > target.heat[0, 36, 5, 6] > 0
    assert target.heat[1, 13, 8, 7] > target.heat[1, 13, 8, 5]


def test_focal_loss_is_least_at_the_truth() -> None:
    heat = targets_of(torch.from_numpy(sample_scenes(4, seed=0)[1])).heat
    truth = torch.logit(heat.clamp(1e-3, 1 - 1e-3))
    peaks_only = torch.where(heat == 1, 9.0, -9.0)
    assert focal_loss(peaks_only, heat) < 1e-3
    assert focal_loss(truth, heat) < focal_loss(torch.zeros_like(heat), heat) < focal_loss(-peaks_only, heat)


def test_ranking_loss_at_known_points() -> None:
    zero, big = torch.zeros(3), torch.full((3,), 50.0)
    assert ranking_loss(zero, zero, zero, zero).item() == pytest.approx(math.log(2))
    assert ranking_loss(big, zero, big, zero).item() == pytest.approx(0, abs=1e-6)
    assert ranking_loss(zero, big, zero, big).item() == pytest.approx(50)
    # One of the four comparisons is wrong: the twin's image wins under the scene's prompt.
    assert ranking_loss(big, zero, big + 50, big + 1).item() == pytest.approx(math.log1p(math.e) / 4, rel=1e-4)

"""One thing changed at a time: an evaluation into the same folder makes new records, and reports none of the old."""

import copy
import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from addiffusion_env.agents.policy_file import PRETRAINED
from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.base import Backbone, Load
from addiffusion_env.backbones.identity import differences
from addiffusion_env.engine.process import REFINE_PRESETS, ProcessConfig
from addiffusion_env.evaluation.judges import Judges
from addiffusion_env.evaluation.manifest import others_in, read_manifest, write_manifest
from addiffusion_env.evaluation.records import SCHEMA, uid_of
from addiffusion_env.evaluation.report import write_report
from addiffusion_env.evaluation.runner import EvaluationContext, carry_out, plan, to_make
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.prompts import Prompt, TextFilePrompts
from addiffusion_env.samplers import make_sampler
from addiffusion_env.samplers.base import BaseSampler
from addiffusion_env.scorers.image_scores import ImageScorers
from addiffusion_env.scorers.sharpness import SharpnessScorer
from addiffusion_env.scorers.utility import CALIBRATORS, Utility
from addiffusion_lab.tiny_pipelines.backbones import BUILDERS
from addiffusion_lab.tiny_pipelines.parts import tiny_autoencoder

SCORER = """
from addiffusion_env.scorers.sharpness import SharpnessScorer

class Brightness(SharpnessScorer):
    \"\"\"A scorer of a user's own, in a file of theirs.\"\"\"

    name = "brightness"

    def __init__(self, factor=1.0):
        self.factor = factor

    def score(self, images, prompts):
        return images{channel}.flatten(1).mean(1) * self.factor
"""


def brightness(folder: Path, channel: str = "", factor: float = 1.0) -> Any:
    """A scorer from a file that its author may edit."""
    path = folder / "edited_scorers.py"
    path.write_text(SCORER.replace("{channel}", channel))
    spec = importlib.util.spec_from_file_location("edited_scorers", path)
    sys.modules["edited_scorers"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Brightness(factor)


class Patient(BaseSampler):
    """A sampler of a user's own, on the evaluation's process as it is."""

    name = "patient"

    def __init__(self, patience: int = 1) -> None:
        self.patience = patience


@dataclass
class World:
    """An evaluation whose every part may be changed; its files are in a separate folder."""

    folder: Path
    scorers: ImageScorers
    dtype: str = "float32"
    options: dict[str, Any] = field(default_factory=dict)
    process: ProcessConfig = field(default_factory=lambda: ProcessConfig(steps=2))
    samplers: list[Any] = field(default_factory=lambda: ["fixed:2"])
    judges: dict[str, Any] = field(default_factory=dict)
    prompts: list[Prompt] = field(default_factory=lambda: [Prompt("a red cup", "cup")])
    backbone: Backbone | None = None

    def __post_init__(self) -> None:
        self.judges = self.judges or {"brightness": brightness(self.folder)}

    def context(self) -> EvaluationContext:
        options = {"preview": str(self.folder / "preview"), **self.options}
        load = Load(str(self.folder / "pipeline"), "cpu", self.dtype, options)
        backbone = self.backbone or BACKBONES.load("sd15").from_pretrained(load)
        return EvaluationContext(backbone, self.scorers, self.process, Judges(None, self.judges))

    def planned(self):
        """(plans, how many images are to be made, what is said of others)."""
        samplers = [make_sampler(spec) if isinstance(spec, str) else spec for spec in self.samplers]
        plans = plan(samplers, self.prompts, [0], self.context())
        out = self.folder / "out"
        return plans, sum(to_make(out, plans, 32)), others_in(out, plans)

    def evaluate(self):
        """(plans, records, how many were to be made, what is said of others)."""
        plans, waiting, others = self.planned()
        write_manifest(self.folder / "out", plans, "sd15", {}, 0.01, 0.02)
        return plans, carry_out(plans, self.context(), self.folder / "out"), waiting, others


@pytest.fixture(scope="session")
def pipelines(scorers, tmp_path_factory):
    """A tiny SD 1.5 with its preview decoder and an evaluation of it, a tiny LCM, a policy and a calibrator."""
    root = tmp_path_factory.mktemp("pipelines")
    for name, folder in (("sd15", "pipeline"), ("lcm", "lcm")):
        BUILDERS[name](root / folder)
    torch.manual_seed(5)
    tiny_autoencoder().save_pretrained(root / "preview")
    shutil.copytree(PRETRAINED / "emoji", root / "policy")
    shutil.copy(CALIBRATORS / "emoji.safetensors", root / "calibrator.safetensors")
    World(root, scorers).evaluate()
    return root


@pytest.fixture
def world(pipelines, scorers, tmp_path):
    """A copy of an evaluation's files, records among them."""
    shutil.copytree(pipelines, tmp_path / "world")
    return World(tmp_path / "world", scorers)


def scaled(path: Path) -> None:
    """The same file with other weights."""
    state = load_file(path)
    save_file({name: value * 0.5 if value.is_floating_point() else value for name, value in state.items()}, path)


def edited(path: Path, **changes: Any) -> None:
    """A JSON file with other entries."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def weights_of(component: str):
    def change(world: World) -> None:
        [path] = (world.folder / component).glob("*.safetensors")
        scaled(path)

    return change


def with_scorer(part: str, **changes: Any):
    """One of the scorers with other attributes; ``model`` scales its weights."""

    def change(world: World) -> None:
        scorer = copy.copy(getattr(world.scorers, part))
        for name, value in changes.items():
            if name == "model":
                scorer.model = copy.deepcopy(scorer.model)
                value = next(scorer.model.parameters()).data.mul_(1.5) is None
                continue
            setattr(scorer, name, value(getattr(scorer, name)) if callable(value) else value)
        parts = {"clip": world.scorers.clip, "preference": world.scorers.preference, "dino": world.scorers.dino}
        world.scorers = ImageScorers(**{**parts, part: scorer})

    return change


def with_process(**changes: Any):
    def change(world: World) -> None:
        world.process = replace(world.process, **changes)

    return change


def with_world(**changes: Any):
    def change(world: World) -> None:
        for name, value in changes.items():
            setattr(world, name, value)

    return change


def loaded(world: World) -> Any:
    """The diffusers pipeline of a world."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(world.folder / "pipeline", safety_checker=None)


def wrapped(world: World, pipe: Any) -> None:
    world.backbone = BACKBONES.load("sd15").from_pipeline(pipe, preview=str(world.folder / "preview"))


class Adapted(torch.nn.Module):
    """A linear layer with a low-rank adapter, as PEFT lays it out: the scale is no weight."""

    def __init__(self, base: torch.nn.Linear, scale: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.base_layer, self.scaling = base, {"style": scale}
        self.lora_A = torch.nn.Parameter(torch.randn(2, base.in_features, generator=generator), False)
        self.lora_B = torch.nn.Parameter(torch.randn(base.out_features, 2, generator=generator), False)

    def forward(self, x):
        return self.base_layer(x) + self.scaling["style"] * (x @ self.lora_A.T @ self.lora_B.T)


def adapted(scale: float):
    def change(world: World) -> None:
        pipe = loaded(world)
        attention = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
        attention.to_q = Adapted(attention.to_q, scale)
        wrapped(world, pipe)

    return change


def freeu(world: World) -> None:
    pipe = loaded(world)
    pipe.enable_freeu(s1=0.5, s2=0.2, b1=1.5, b2=1.6)
    wrapped(world, pipe)


def plain_pipe(world: World) -> None:
    wrapped(world, loaded(world))


def own_sampler_weights(world: World) -> None:
    world.samplers = [f"lcm:2,{world.folder / 'lcm'}"]


def trained_policy(world: World) -> None:
    world.samplers = [f"policy:{world.folder / 'policy'}"]


def calibrated(world: World) -> None:
    world.samplers = [Patient()]
    name = str(world.folder / "calibrator.safetensors")
    world.process = replace(world.process, refine=replace(REFINE_PRESETS["off"], utility=Utility(calibrator=name)))


def text_file(*lines: str):
    def change(world: World) -> None:
        path = world.folder / "prompts.txt"
        path.write_text("\n".join(lines))
        world.prompts = TextFilePrompts(path).take(1)

    return change


def nothing(world: World) -> None:
    """Changes nothing."""


CHANGES = {
    "denoiser's weights": (nothing, weights_of("pipeline/unet")),
    "autoencoder's weights": (nothing, weights_of("pipeline/vae")),
    "text encoder's weights": (nothing, weights_of("pipeline/text_encoder")),
    "preview decoder's weights": (nothing, weights_of("preview")),
    "autoencoder's configuration": (
        nothing,
        lambda world: edited(world.folder / "pipeline" / "vae" / "config.json", scaling_factor=0.5),
    ),
    "tokenizer's vocabulary": (
        nothing,
        lambda world: (
            (world.folder / "pipeline" / "tokenizer" / "added_tokens.json").write_text('{"<sks>": 999}')
            and [path.unlink() for path in (world.folder / "pipeline" / "tokenizer").glob("tokenizer.json")]
        ),
    ),
    "scheduler's betas": (
        nothing,
        lambda world: edited(world.folder / "pipeline" / "scheduler" / "scheduler_config.json", beta_end=0.02),
    ),
    "scheduler's prediction type": (
        nothing,
        lambda world: edited(
            world.folder / "pipeline" / "scheduler" / "scheduler_config.json", prediction_type="v_prediction"
        ),
    ),
    "dtype": (nothing, with_world(dtype="bfloat16")),
    "backbone option": (nothing, with_world(options={"truncate_prompts": True})),
    "image size": (nothing, with_world(options={"image_size": 32})),
    "adapter": (plain_pipe, adapted(1.0)),
    "adapter's scale": (adapted(1.0), adapted(0.5)),
    "FreeU": (plain_pipe, freeu),
    "scorer's weights": (nothing, with_scorer("dino", model=0.5)),
    "scorer's option": (nothing, with_scorer("clip", preprocess=lambda old: replace(old, mode="longest"))),
    "preference's scale": (nothing, with_scorer("preference", std=lambda old: old * 2)),
    "a further judge": (nothing, lambda world: world.judges.update(sharpness=SharpnessScorer())),
    "no judge": (nothing, lambda world: world.judges.clear()),
    "judge's option": (nothing, lambda world: world.judges.update(brightness=brightness(world.folder, factor=2.0))),
    "judge's formula": (nothing, lambda world: world.judges.update(brightness=brightness(world.folder, "[:, :1]"))),
    "solver": (nothing, with_process(solver="dpmpp_2m")),
    "guidance": (nothing, with_process(guidance_scale=5.0)),
    "early_exit": (nothing, with_process(early_exit_steps=1)),
    "spacing": (with_world(samplers=["fixed:2"]), with_world(samplers=["fixed:2,leading"])),
    "setting of a sampler of one's own": (with_world(samplers=[Patient(1)]), with_world(samplers=[Patient(2)])),
    "refine preset": (with_world(samplers=[Patient()]), with_process(refine=REFINE_PRESETS["resample_short"])),
    "calibrator's content": (calibrated, lambda world: scaled(world.folder / "calibrator.safetensors")),
    "policy's weights": (trained_policy, lambda world: scaled(world.folder / "policy" / "policy.safetensors")),
    "policy's frontier": (
        trained_policy,
        lambda world: edited(world.folder / "policy" / "config.json", frontier=[[0.0, 9.0], [0.03, 2.0]]),
    ),
    "weights of a sampler's own": (own_sampler_weights, weights_of("lcm/unet")),
    "prompt file's content": (text_file("a red cup"), text_file("a cat")),
    "text under the same id": (nothing, with_world(prompts=[Prompt("a dog", "cup")])),
    "requirements under the same id": (
        nothing,
        with_world(prompts=[Prompt("a red cup", "cup", requirements={"n": 2})]),
    ),
}


SLOW = {
    "autoencoder's configuration",
    "preview decoder's weights",
    "scheduler's betas",
    "adapter",
    "FreeU",
    "preference's scale",
    "no judge",
    "early_exit",
    "spacing",
    "policy's frontier",
    "setting of a sampler of one's own",
    "text under the same id",
    "weights of a sampler's own",
    "calibrator's content",
    "judge's option",
    "image size",
    "refine preset",
}
"""Kinds that another change stands for in the fast suite."""


@pytest.mark.parametrize(
    "thing", [pytest.param(thing, marks=[pytest.mark.slow] * (thing in SLOW), id=thing) for thing in CHANGES]
)
def test_one_thing_changed_gives_new_records(thing, world):
    before, change = CHANGES[thing]
    old = {record.uid for record in RecordStore(world.folder / "out" / "records").read()}
    if before is not nothing:
        before(world)
        old = {job.uid for entry in world.planned()[0] for job in entry.jobs}
    change(world)
    plans, made, _ = world.planned()
    assert made == 1, "the old record was taken for the new one's"
    assert old.isdisjoint(job.uid for entry in plans for job in entry.jobs)


@pytest.mark.slow
@pytest.mark.parametrize("before", [trained_policy, calibrated, own_sampler_weights, adapted(1.0), freeu])
def test_nothing_changed_gives_the_same_records(before, world):
    """What the changes above are seen against."""
    before(world)
    first, second = (world.planned()[0] for _ in range(2))
    assert [job.uid for entry in first for job in entry.jobs] == [job.uid for entry in second for job in entry.jobs]


@pytest.mark.parametrize("before", [nothing, plain_pipe], ids=["from the folder", "from a loaded pipeline"])
def test_a_copy_of_the_files_is_the_same_model(before, world):
    before(world)
    _, made, others = world.planned()
    assert (made, others) == (0, "")


def test_old_and_new_lie_side_by_side_and_none_is_taken_for_the_other(world):
    out = world.folder / "out"
    first = RecordStore(out / "records").read()
    weights_of("pipeline/unet")(world)
    _, second, made, _ = world.evaluate()
    kept = RecordStore(out / "records").read()
    assert made == 1 and {r.uid for r in kept} == {r.uid for r in (*first, *second)}
    assert read_manifest(out).select(kept) == second
    assert first[0].preference != second[0].preference


def test_an_upgraded_package_gives_new_records(world, monkeypatch):
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99.0" if name == "open_clip_torch" else version(name))
    _, made, others = world.planned()
    assert made == 1 and "packages.open_clip_torch: " in others and "-> 99.0" in others


def test_what_has_changed_is_named_and_the_report_says_what_was_used(world):
    old = read_manifest(world.folder / "out").identity
    [first] = RecordStore(world.folder / "out" / "records").read()
    weights_of("pipeline/unet")(world)
    plans, [second], _, others = world.evaluate()
    [line] = differences(old, plans[0].identity)
    here = plans[0].identity["backbone"]["pipe"]["unet"]["weights"]
    there = old["backbone"]["pipe"]["unet"]["weights"]
    assert line == f"backbone.pipe.unet.weights: {there[:12]} -> {here[:12]}"
    assert others.splitlines()[0].endswith(
        f"holds 1 records of these samplers by another model, scorer or judge; previous versus current: {line}"
    )
    report = write_report(world.folder / "out").markdown.read_text()
    assert second.preference != first.preference
    assert here[:16] in report and there[:16] not in report


def test_records_of_an_older_version_are_read_as_what_they_are(world):
    """They match no identity; a report of their manifest still reads them."""
    import pyarrow.parquet as pq

    out = world.folder / "out"
    [first] = RecordStore(out / "records").read()
    [shard] = RecordStore(out / "records").shards()
    old = pq.read_table(shard).drop_columns(["identity"])
    old = old.set_column(1, SCHEMA.field("variant"), [["0" * 40]])
    pq.write_table(old, shard)
    raw = json.loads((out / "evaluation.json").read_text())
    del raw["identity"], raw["prompt_keys"]
    raw["samplers"][0]["variant"] = "0" * 40
    uid = uid_of("0" * 40, first.prompt_id, 0)
    pq.write_table(old.set_column(0, SCHEMA.field("uid"), [[uid]]), shard)
    (out / "evaluation.json").write_text(json.dumps(raw))
    manifest = read_manifest(out)
    assert [r.identity for r in manifest.select(RecordStore(out / "records").read())] == [None]
    assert "recorded by an older version" in write_report(out).markdown.read_text()
    _, [second], made, others = world.evaluate()
    assert made == 1 and second.uid != uid and "1 of an older version do not record it" in others

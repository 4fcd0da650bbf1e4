"""The runner: the same records whatever the lanes, resumed after a kill, judged by those who were kept out."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from eval_records import record
from PIL import Image
from rounding import assert_records_alike
from zoo import ZOO

from addiffusion_env import AdaptivePipeline
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.engine.process import Action, ProcessConfig
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import ConfigError, NumericsError, UnknownNameError
from addiffusion_env.evaluation.filmstrips import draw_filmstrip, pick_examples, read_filmstrips, render_filmstrips
from addiffusion_env.evaluation.judges import Judges
from addiffusion_env.evaluation.runner import EvaluationContext, evaluate, plan
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers import make_sampler
from addiffusion_env.samplers.base import BaseSampler
from addiffusion_env.scorers.image_scores import NoScorers

SAMPLERS_COMPARED = ("fixed:2", "best_of:2x1", "random:0.4")


class StopWhenLiked(BaseSampler):
    """Reads preview scores, and stops once the preference is high enough."""

    usage = "liked:"
    name = "liked"
    needs_preview = True

    def decide(self, requests):
        return [
            int(Action.STOP if r.lane.scores is not None and r.lane.scores.preference[0] > -1 else Action.CONTINUE)
            for r in requests
        ]


@pytest.fixture(scope="module")
def context(emoji, scorers):
    return EvaluationContext(emoji, scorers, ProcessConfig(steps=3), Judges.of(["emoji_detector", "sharpness"]))


@pytest.fixture(scope="module")
def samplers():
    return [make_sampler(spec) for spec in SAMPLERS_COMPARED] + [StopWhenLiked()]


@pytest.fixture(scope="module")
def whole(samplers, prompts, context, tmp_path_factory):
    """(records, folder) of an unbroken run."""
    folder = tmp_path_factory.mktemp("whole")
    return evaluate(samplers, prompts[:2], [0, 1], context, folder, max_lanes=4, shard_size=4, keep_images=True), folder


def test_every_image_has_its_record_in_the_order_asked(whole, samplers, prompts):
    records, _ = whole
    asked = [(m.name, p.prompt_id, seed) for m in samplers for p in prompts[:2] for seed in (0, 1)]
    assert [(r.sampler, r.prompt_id, r.seed) for r in records] == asked
    assert len({r.uid for r in records}) == len(records)
    for r in records:
        assert r.network_calls == 2 * r.nfe
        assert r.correct in (True, False)
        assert r.correct == (r.reason == "correct")
        assert r.seconds > 0
        assert set(r.extra) == {"sharpness"}
        assert r.decisions == len(r.actions)


def test_records_do_not_depend_on_the_lanes(whole, samplers, prompts, context, tmp_path):
    again = evaluate(samplers, prompts[:2], [1], context, tmp_path, max_lanes=1, shard_size=2)
    assert_records_alike(again, [record for record in whole[0] if record.seed == 1])


@pytest.mark.parametrize(
    ("pipeline", "scheduler", "given", "nfe"),
    [
        ("sd15_img2img", "EulerDiscreteScheduler", {"image": Image.new("RGB", (16, 16)), "strength": 0.5}, 3 + 1),
        ("sd15", "HeunDiscreteScheduler", {"height": 16, "width": 16}, 11 + 3),
    ],
)
def test_an_early_exit_is_where_the_pipeline_takes_it(pipeline, scheduler, given, nfe, prompts, tmp_path):
    """60 % of the evaluations that there are, five or nineteen of ten steps."""
    pipe = ZOO[pipeline]()
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    backbone = PipelineBackbone(pipe, {**given, "num_inference_steps": 10}, preview="none")
    sampler = make_sampler("checked_attempts:0,0.6,1")
    base = EnvSettings(refine="off").process(backbone.capabilities, backbone.name)
    [record] = evaluate([sampler], prompts[:1], [0], EvaluationContext(backbone, NoScorers(), base), tmp_path)
    assert record.nfe == nfe and record.actions == (0, 1)
    assert AdaptivePipeline(backbone, sampler)("a photo of a dog").nfe.tolist() == [nfe]


def test_what_was_lost_is_made_again_to_the_last_bit(samplers, prompts, context, tmp_path):
    """Images that shared a batch share it again, though their neighbours in the plan are there already."""
    sizes = {"max_lanes": 3, "shard_size": 3}
    first = evaluate(samplers[::3], prompts[:4], [0], context, tmp_path, **sizes)
    shards = RecordStore(tmp_path / "records").shards()
    for lost in shards[1::2]:
        lost.unlink()
    again = evaluate(samplers[::3], prompts[:4], [0], context, tmp_path, **sizes)
    assert len(shards) == 4
    assert [replace(r, seconds=0.0, peak_memory=None) for r in again] == [
        replace(r, seconds=0.0, peak_memory=None) for r in first
    ]


def test_a_second_run_makes_nothing(whole, samplers, prompts, context, monkeypatch):
    records, folder = whole
    monkeypatch.setattr(type(context.backbone), "predict", None)
    told = []
    again = evaluate(samplers, prompts[:2], [0, 1], context, folder, on_records=told.extend)
    assert again == records
    assert len(told) == len(records)


def test_what_a_new_judge_has_not_seen_is_made_beside(whole, samplers, prompts, context, tmp_path):
    first = replace(context, judges=Judges(context.judges.verdict))
    before = evaluate(samplers[:1], prompts[:1], [0], first, tmp_path)
    after = evaluate(samplers[:1], prompts[:1], [0], context, tmp_path)
    assert (before[0].extra, set(after[0].extra)) == ({}, {"sharpness"})
    assert before[0].uid != after[0].uid and before[0].identity != after[0].identity
    assert {r.uid for r in RecordStore(tmp_path / "records").read()} == {before[0].uid, after[0].uid}


def test_images_are_kept_on_request(whole):
    records, folder = whole
    images = RecordStore(folder / "records").images(r.uid for r in records)
    assert len(images) == len(records)
    assert all(png.startswith(b"\x89PNG") for png in images.values())


def test_an_unknown_judge_gets_the_nearest_name():
    with pytest.raises(UnknownNameError, match="did you mean 'emoji_detector'"):
        Judges.of(["emoji_detektor"])


def test_the_emoji_worlds_preference_can_be_asked_as_a_judge(context, prompts, tmp_path):
    """It returns the preview scores: the same model on the same image."""
    judged = replace(context, judges=Judges.of(["emoji_preference"]))
    (found,) = evaluate([make_sampler("fixed:2")], prompts[:1], [0], judged, tmp_path)
    assert found.extra["emoji_preference"] == pytest.approx(found.preference, abs=1e-3)
    with pytest.raises(ConfigError, match="dino"):
        Judges.of(["dino"])


def test_a_prompt_without_requirements_has_no_verdict(context, tmp_path):
    (found,) = evaluate([make_sampler("fixed:1")], [Prompt.of("a dog")], [0], context, tmp_path)
    assert (found.correct, found.reason) == (None, "")


def test_what_was_finished_before_an_error_is_kept(prompts, context, tmp_path, monkeypatch):
    calls = []
    predict = type(context.backbone).predict

    def breaks(self, *args, **kwargs):
        calls.append(1)
        found = predict(self, *args, **kwargs)
        return replace(found, x0=torch.full_like(found.x0, float("nan"))) if len(calls) > 3 else found

    monkeypatch.setattr(type(context.backbone), "predict", breaks)
    with pytest.raises(NumericsError, match="NaN"):
        evaluate([make_sampler("fixed:1")], prompts[:5], [0], context, tmp_path, max_lanes=1, shard_size=99)
    monkeypatch.undo()
    assert len(RecordStore(tmp_path / "records").read()) == 3
    assert len(evaluate([make_sampler("fixed:1")], prompts[:5], [0], context, tmp_path)) == 5


def test_a_damaged_shard_is_made_again(prompts, context, tmp_path):
    first = evaluate([make_sampler("fixed:1")], prompts[:3], [0], context, tmp_path, shard_size=2)
    shard = RecordStore(tmp_path / "records").shards()[0]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.warns(UserWarning, match="set aside"):
        again = evaluate([make_sampler("fixed:1")], prompts[:3], [0], context, tmp_path)
    assert_records_alike(again, first)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samplers": []}, "at least one sampler"),
        ({"samplers": ["fixed:2", "fixed:2"]}, "sampler 'fixed:2' is given more than once"),
        ({"seeds": [1, 1]}, "seed '1' is given more than once"),
        ({"prompts": 0}, "at least one prompt"),
    ],
)
def test_an_ambiguous_plan_is_refused(change, words, prompts, context):
    asked = {"samplers": ["fixed:2"], "seeds": [0], "prompts": 2, **change}
    with pytest.raises(ConfigError, match=words):
        plan([make_sampler(spec) for spec in asked["samplers"]], prompts[: asked["prompts"]], asked["seeds"], context)


def test_sizes_below_one_are_refused(prompts, context, tmp_path):
    for setting in ("max_lanes", "shard_size"):
        with pytest.raises(ConfigError, match=f"{setting} must be at least 1"):
            evaluate([make_sampler("fixed:1")], prompts[:1], [0], context, tmp_path, **{setting: 0})


def test_filmstrips_show_what_was_done(whole, samplers, prompts, context):
    records, folder = whole
    plans = plan(samplers, prompts[:2], [0, 1], context)
    filmstrips = render_filmstrips(plans, records, context, folder)
    assert {f.sampler for f in filmstrips} == {"liked"}
    assert [f.role for f in filmstrips][:3] == ["best", "median", "worst"]
    by_uid = {r.uid: r for r in records}
    for filmstrip in filmstrips:
        assert filmstrip.actions == by_uid[filmstrip.uid].actions
        assert len(filmstrip.frames) == len(filmstrip.actions) == len(filmstrip.preferences)
        assert filmstrip.preferences[-1] == pytest.approx(by_uid[filmstrip.uid].preference, abs=0.01)
        assert draw_filmstrip(filmstrip).shape == (122, 96 * len(filmstrip.frames), 3)
    assert read_filmstrips(folder) == filmstrips
    bounds = [make_sampler(spec) for spec in ("oracle_stop:preference", "best_of:2x2")]
    for sampler in bounds:  # no decision of the oracle's own; of several attempts the one that was kept
        planned = plan([sampler], prompts[:1], [0], context)
        [record_, *_] = evaluate([sampler], prompts[:1], [0], context, folder / sampler.kind)
        [filmstrip, *_] = render_filmstrips(planned, [record_], context, folder / sampler.kind)
        assert len(filmstrip.frames) == len(filmstrip.actions) == len(filmstrip.preferences)
        assert filmstrip.preferences[-1] == pytest.approx(record_.preference, abs=0.01)
    assert [role for role, _ in pick_examples([record(prompt=1), record(prompt=2)])] == ["best", "median"]
    costly = [record(prompt=n, preference=-n, nfe=4 + (n == 1)) for n in range(9)]
    assert [(role, r.prompt_id[-1]) for role, r in pick_examples(costly)][3] == ("costliest", "1")
    assert pick_examples([]) == []


KILLED = """
import sys
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from addiffusion_env.samplers import make_sampler
from addiffusion_env.envs.settings import load_backbone, load_scorers
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.evaluation.judges import Judges
from addiffusion_env.evaluation.runner import EvaluationContext, evaluate
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts
emoji = load_backbone(EnvSettings())
judges = Judges.of(["emoji_detector"])
context = EvaluationContext(emoji, load_scorers(emoji), ProcessConfig(steps=2), judges)
evaluate([make_sampler("fixed:2")], EmojiPrompts("test").take(400), [0], context, {out!r}, max_lanes=2, shard_size=2)
"""


@pytest.mark.slow
def test_a_killed_run_leaves_whole_shards_only(tmp_path):
    root = str(Path(__file__).parents[2])
    code = KILLED.format(root=root, out=str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while len(list(tmp_path.glob("records/records-*.parquet"))) < 3 and time.monotonic() < until:
            assert child.poll() is None, "the run ended by itself"
            time.sleep(0.05)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    found = RecordStore(tmp_path / "records").read()
    assert len(found) >= 6
    assert len(found) % 2 == 0

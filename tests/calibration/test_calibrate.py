"""`calibrate` from end to end on the emoji world, killed at each stage; what a run costs before it starts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from addiffusion_env import AdaptivePipeline, calibrate
from addiffusion_env.agents.policy_file import folder_digest
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.cost import RunCost, Stage, UnitCosts, Work
from addiffusion_env.scorers.hub_image_scores import hub_scorers
from addiffusion_env.scorers.image_scores import NoScorers
from addiffusion_lab.tiny_pipelines import ZOO
from addiffusion_lab.tiny_pipelines.scorers import scorer_folders

TEXTS = [f"a photo of a {colour} {thing}" for colour in ("red", "blue") for thing in ("cup", "dog", "bus")]
ROOT = Path(__file__).parents[2]
SMALL = {
    "minutes": 60,
    "attempts": 2,
    "lanes": 8,
    "most_prompts": 16,
    "report_images": 2,
    "progress_bar": False,
    "steps": 3,
    "decide_at": [1],
    "early_exit_steps": 1,
}
CODE = "import sys, torch; torch.set_num_threads(1); from addiffusion_env import calibrate; "
CODE += "calibrate('emoji', folder=sys.argv[1], **eval(sys.argv[2]))"


def killed_when(happened, folder):
    """Runs a calibration in a process of its own and kills it as soon as ``happened()``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", CODE, str(folder), repr(SMALL)], env=environment)
    while child.poll() is None and not happened():
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    return child.wait()


@pytest.mark.slow
def test_a_calibration_survives_a_kill_at_each_stage(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = calibrate("emoji", folder=whole, **SMALL)
    for sign in ("table/*.parquet", "policy/policy.safetensors", "images/records/*.parquet"):
        killed_when(lambda sign=sign: any(cut.glob(sign)), cut)
        assert any(cut.glob(sign))
    assert json.loads((cut / "progress.json").read_text())["images"] in (8, 16)
    found = calibrate("emoji", folder=cut, **SMALL)
    assert found.rules == expected.rules and found.prompts == 16
    assert folder_digest(cut) == folder_digest(whole)
    page = found.report.read_text(encoding="utf-8")
    assert page.count("<img") == 4 and "fitted without labels" in page
    out = AdaptivePipeline.from_pretrained(cut)("a photo of a dog", target_nfe=found.rules[0].nfe)
    assert len(out.images) == 1


def test_around_a_diffusers_pipeline(tmp_path):
    scorers = hub_scorers("cpu", scorer_folders(tmp_path / "scorers"))
    pipe = PipelineBackbone(ZOO["sd15"](), {"height": 16, "width": 16}, preview="linear")
    found = calibrate(pipe, TEXTS, folder=tmp_path / "run", scorers=scorers, **{**SMALL, "guidance_interval": None})
    assert found.prompts == 16
    # From an early exit at once, in one evaluation, to two whole schedules of three.
    assert found.rules[0].nfe == 1 and all(1 <= rule.nfe <= 6 for rule in found.rules)
    out = AdaptivePipeline(pipe, tmp_path / "run", scorers=scorers)(TEXTS, target_nfe=1)
    assert out.nfe.tolist() == [1] * len(TEXTS)


def test_without_scorers_the_policy_is_an_early_exit(tmp_path):
    pipe = PipelineBackbone(ZOO["sd15"](), {"height": 16, "width": 16}, preview="linear")
    few = {"report_images": 1, "progress_bar": False, "guidance_interval": None, "early_exit_steps": 1}
    found = calibrate(pipe, TEXTS, folder=tmp_path, scorers=NoScorers(), steps=5, **few)
    assert found.prompts == 0 and found.report.read_text(encoding="utf-8").count("<img") == 2
    out = AdaptivePipeline(pipe, tmp_path)(TEXTS[:1])
    assert out.nfe.tolist() == [4]  # three steps of five, and one evaluation for the rest


def test_an_image_to_image_pipeline_exits_within_its_steps(tmp_path):
    image = Image.new("RGB", (16, 16), "red")
    pipe = PipelineBackbone(ZOO["sd15_img2img"](), {"image": image, "strength": 0.5}, preview="linear")
    few = {"report_images": 0, "progress_bar": False, "guidance_interval": None, "early_exit_steps": 1}
    calibrate(pipe, TEXTS, folder=tmp_path, scorers=NoScorers(), steps=10, **few)
    assert AdaptivePipeline(pipe, tmp_path)(TEXTS[:1]).nfe.tolist() == [4]  # of the last five steps of ten


def test_too_little_time_is_refused_before_anything_is_recorded(tmp_path):
    with pytest.raises(ConfigError, match="a calibrator needs 16"):
        calibrate("emoji", folder=tmp_path / "run", **{**SMALL, "minutes": 1e-3, "lanes": 1})
    assert not (tmp_path / "run" / "table").exists()
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        calibrate("emoji", folder=tmp_path / "run", **{**SMALL, "step": 3})


def test_a_table_of_costs_adds_up():
    units = UnitCosts(call=0.01, look=0.1, finish=1.0, lanes=4)
    work = Work(images=10, nfe=50, calls=100, looks=20, finishes=10)
    cost = RunCost((Stage.known("record", work, disk=2e6), Stage.known("learn", Work(), fixed=60)), units, 10)
    assert cost.seconds() == pytest.approx(60 + 1 + 2 + 10) and cost.seconds(0.5) == pytest.approx(60 + 6.5)
    lines = cost.table().splitlines()
    assert "20 ms an evaluation, 100 ms a scored preview, 1000 ms a finished image" in lines[0]
    assert lines[2].split() == ["record", "10", "50", "13", "s", "2", "MB"]
    assert lines[-2].split() == ["all", "1", "min", "13", "s", "2", "MB"]
    assert "half of them 1 min 6 s" in lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_sb3.py experiment=smoke", "eval_sb3.py prompts=2 samplers=[fixed:2]"])
def test_a_plan_prints_the_cost_and_runs_nothing(script, tmp_path):
    words = script.split()
    command = [sys.executable, str(ROOT / words[0]), *words[1:], "--plan"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ms an evaluation" in done.stdout and "with fewer prompts: half of them" in done.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

"""What holds for every registered method, on the emoji world or, where it needs another model, on a tiny one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import addiffusion_env
from addiffusion_env.backbones.base import Capabilities
from addiffusion_env.baselines import BASELINES, make_method
from addiffusion_env.baselines.base import Method
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import CapabilityError, WeightsError
from addiffusion_env.evaluation.runner import Stage, evaluate

POLICY = Path(addiffusion_env.__file__).parent / "agents" / "pretrained" / "emoji"
# Name -> (backbone, specification); FOLDER stands for the method's own tiny weights.
CASES = {
    "fixed": ("emoji", "fixed:2,trailing,unipc"),
    "stop": ("emoji", "stop:1"),
    "random": ("emoji", "random:0.5"),
    "prompt_rule": ("emoji", "prompt_rule:3,2"),
    "best_of": ("emoji", "best_of:2x2"),
    "threshold_retry": ("emoji", "threshold_retry:1.5,2,2"),
    "interval": ("emoji", "interval:threshold_retry:1.5,2,2"),
    "oracle_stop": ("emoji", "oracle_stop:clip_score"),
    "lcm": ("sd15", "lcm:2,FOLDER"),
    "turbo": ("sdxl", "turbo:2,FOLDER"),
    "sag": ("emoji", "sag:2"),
    "attend_excite": ("sd15", "attend_excite:2"),
    "fbcache": ("flux", "fbcache:3,0.1"),
    "policy": ("emoji", f"policy:{POLICY}"),
}


def process_of(capabilities: Capabilities) -> ProcessConfig:
    return ProcessConfig(
        steps=3, solver=capabilities.default_solver, guidance_scale=4.0 if capabilities.guidance else 1.0
    )


@pytest.fixture(params=sorted(BASELINES))
def case(request, on, weights, scorers):
    """A registered method with the stage that it can run on."""
    backbone, spec = CASES[request.param]
    if "FOLDER" in spec:
        spec = spec.replace("FOLDER", str(weights(request.param)[0]))
    return spec, Stage(on(backbone), scorers, process_of(on(backbone).capabilities))


def facts(record):
    return replace(record, seconds=0.0, preference=0.0, clip_score=0.0, extra={})


def test_a_picture_is_its_own_and_its_cost_is_counted(case, prompts, tmp_path):
    spec, stage = case
    method = make_method(spec)
    assert isinstance(method, Method)
    together = evaluate([method], prompts[:2], [0], stage, tmp_path / "a", max_lanes=2)
    alone = evaluate([make_method(spec)], prompts[1::-1], [0], stage, tmp_path / "b", max_lanes=1)[::-1]
    for one, other in zip(together, alone, strict=True):
        assert facts(one) == facts(other)
        assert one.preference == pytest.approx(other.preference, abs=2e-3)
        assert one.nfe > 0 and one.network_calls >= one.nfe
        assert np.isfinite([one.seconds, one.preference, *one.extra.values()]).all()
        assert one.seconds > 0
        assert one.decisions >= 1
    assert together[0].preference != together[1].preference


def test_it_leaves_the_model_as_it_was(case, prompts, tmp_path):
    spec, stage = case
    backbone = stage.backbone
    module = backbone.denoiser
    before = (before_hooks(module), getattr(module, "attn_processors", None), predicted(backbone, prompts))
    evaluate([make_method(spec)], prompts[:1], [0], stage, tmp_path)
    assert before_hooks(module) == before[0]
    if before[1] is not None:
        assert all(module.attn_processors[name] is kept for name, kept in before[1].items())
    np.testing.assert_allclose(predicted(backbone, prompts), before[2], atol=1e-5)


def before_hooks(module):
    return sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in module.modules())


def predicted(backbone, prompts):
    import torch

    x = torch.randn(1, *backbone.capabilities.latent_shape, generator=torch.Generator().manual_seed(0))
    one = torch.ones(1, dtype=torch.float64)
    return backbone.predict(x, 0.5 * one, backbone.encode([prompts[0].text]), one).x0.numpy()


def test_every_method_says_what_it_is_and_what_it_needs():
    for name in BASELINES:
        kind = BASELINES.load(name)
        assert kind.usage.startswith(f"{name}:")
        assert kind.__doc__.strip().splitlines()[0].endswith(".")
        assert isinstance(kind.needs(), str)
        assert name in CASES, "a new method needs a case here"


@pytest.mark.parametrize(
    ("spec", "backbone", "error", "words"),
    [
        ("lcm:4", "emoji", CapabilityError, "backbone=sd15"),
        ("lcm:4", "sd15", WeightsError, "hf download SimianLuo/LCM_Dreamshaper_v7"),
        ("lcm:4,SD15", "sd15", WeightsError, "lcm needs consistency-distilled weights"),
        ("turbo:1", "sd15", CapabilityError, "backbone=sdxl"),
        ("turbo:1", "sdxl", WeightsError, "hf download stabilityai/sdxl-turbo"),
        ("turbo:1,SDXL", "sdxl", WeightsError, "not distilled"),
        ("sag:4", "sdxl", CapabilityError, "Stable Diffusion 1.x and 2.x"),
        ("attend_excite:4", "flux", CapabilityError, "Stable Diffusion 1.x and 2.x"),
        ("fbcache:4,0.1", "emoji", CapabilityError, "DeepCache is not part of it"),
    ],
)
def test_what_it_lacks_is_said_before_anything_is_made(spec, backbone, error, words, on, weights, scorers):
    for name in ("SDXL", "SD15"):
        if spec.endswith(f",{name}"):
            spec = spec.replace(name, str(weights(name.lower())[0]))
    with pytest.raises(error, match=words):
        make_method(spec).bind(on(backbone), scorers)

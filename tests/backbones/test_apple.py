"""Apple GPUs (MPS) have no float64: a lane uses only operations that the device supports.

No such machine is available; :mod:`tests.pretend_mps` enforces its rules on the CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from pretend_mps import MPS, PretendMps, mark, send

from addiffusion_env.backbones.base import Load
from addiffusion_env.backbones.emoji import WEIGHTS, EmojiBackbone
from addiffusion_env.backbones.solvers import SOLVERS
from addiffusion_env.engine.coroutines import env_step
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import open_lane
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.envs.settings import refine_config
from addiffusion_env.prompts.emoji_grammar import emoji_prompt
from addiffusion_env.scorers.emoji import emoji_scorers

PROMPT = emoji_prompt("a photo of a red cup left of a dog")
WAYS = [("dpmpp_2m", "weakest"), ("ddim", "as_published"), ("unipc", "resample_short")]
SLOW = [pytest.param(*way, marks=pytest.mark.slow) for way in WAYS[1:]]


@pytest.fixture(scope="module")
def apple():
    """Backbone and scorers whose weights are on the simulated device."""
    backbone = EmojiBackbone.from_pretrained(Load(device="cpu"))
    scorers = emoji_scorers(WEIGHTS, "cpu")
    preference, reader = scorers.preference.matching, scorers.preference.reader
    parts = (backbone.denoiser, backbone.vae, backbone.previewer, backbone.parts.text_encoder)
    seen = (scorers.clip.model, scorers.dino.model, preference.head, preference.encoder.vision, preference.encoder.text)
    for module in (*parts, *seen, reader):
        send(module)
    for owner in (backbone, scorers.clip, scorers.dino, preference.encoder):
        owner.device = MPS
    return backbone, scorers


def play(backbone, scorers, solver, refine):
    process = ProcessConfig(steps=2, solver=solver, early_exit_steps=1, refine=refine_config(refine))
    engine = Engine(backbone, scorers, solver=solver)
    lane, image = open_lane(backbone, process, PROMPT, 0), None
    for action in (0, 2, 1):
        [(lane, image)] = engine.run([env_step(backbone, process, lane, action)])
    return lane, image


@pytest.mark.parametrize(("solver", "refine"), [WAYS[0], *SLOW])
def test_a_lane_on_mps_equals_one_on_the_cpu(apple, emoji, scorers, solver, refine):
    with PretendMps() as device:
        lane, image = play(*apple, solver, refine)
        pixels = image.pixels()
    assert device.operations > 500
    assert lane.refinements == 1 and lane.remaining == 0
    expected_lane, expected = play(emoji, scorers, solver, refine)
    assert lane.nfe == expected_lane.nfe
    np.testing.assert_allclose(pixels.astype(int), expected.pixels().astype(int), atol=2)


def test_every_solver_is_tried():
    assert {solver for solver, _ in WAYS} == set(SOLVERS)


def test_the_pretence_refuses_what_mps_refuses():
    with PretendMps():
        x = torch.ones(2).to("mps")
        assert x.device == (x * 2).device == MPS and x.cpu().device == torch.device("cpu")
        with pytest.raises(TypeError, match="doesn't support float64"):
            x.double()
        with pytest.raises(TypeError, match="doesn't support float64"):
            torch.ones(2, dtype=torch.float64).to("mps")
        assert torch.ones(2, dtype=torch.float64).to(device="mps", dtype=torch.float32).device == MPS
        with pytest.raises(RuntimeError, match="one device"):
            x + torch.ones(2)
        with pytest.raises(TypeError, match="to numpy"):
            x.numpy()
        assert torch.zeros(3, device=x.device).device == MPS
    assert mark(torch.ones(1)).device == torch.device("cpu")  # outside the context, tensors are unchanged

"""What a new process imports: few files for an environment, no Ray for a local training, nothing heavy for names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PACKAGES = """
import sys, addiffusion_env
loaded = lambda *names: print([name for name in names if name in sys.modules])
loaded("torch", "diffusers", "transformers")
import addiffusion_lab
loaded("torch", "diffusers", "pandas", "scipy", "addiffusion_lab.claims", "addiffusion_lab.metrics")
from addiffusion_env.scorers import SCORERS
assert len(SCORERS) >= 8
loaded("transformers", "open_clip", "diffusers")
"""

STAGES = """
import json, sys, gymnasium, addiffusion_env
told = {}
env = gymnasium.make("AdDiffusion-Emoji-v2")
told["made"] = list(sys.modules)

env.reset(seed=0)
passed = set()
sys.setprofile(lambda frame, event, _: passed.add(frame.f_code.co_filename))
env.step(0)
sys.setprofile(None)
told["stepped"] = [name for name in passed if "addiffusion_env" in name]

from addiffusion_env.errors import UnknownNameError
from addiffusion_env.samplers import make_sampler
def error_of(name):
    try:
        make_sampler(name)
    except UnknownNameError as error:
        return str(error)
told["without the lab"] = error_of("lcm:4")

from addiffusion_env.agents.factory import make_rollouts
make_rollouts({"kind": "local"}, 1, 0, {"backbone": "emoji", "steps": 2})
import addiffusion_env.agents.training, addiffusion_env.agents.tabular_training
told["trained"] = list(sys.modules)

import addiffusion_lab
told["with the lab"] = error_of("lmc:4")
print(json.dumps(told))
"""
"""One process for all: most of its time are imports of torch and diffusers. Later stages import what they need."""


def printed(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.fixture(scope="module")
def told():
    return json.loads(printed(STAGES).splitlines()[-1])


def test_importing_the_packages_and_listing_scorers_loads_nothing_heavy():
    assert printed(PACKAGES).split() == ["[]"] * 3


def test_make_and_step_import_few_files_and_no_other_backbones(told):
    own = [name for name in told["made"] if name.startswith("addiffusion")]
    assert len(own) <= 41
    assert not {"ray", "stable_baselines3", "addiffusion_lab"} & set(told["made"])
    assert not [name for name in own if "image_reward" in name or "hub_" in name]
    assert 0 < len(told["stepped"]) <= 25  # a whole attempt and the check of its image


def test_a_local_training_loads_no_ray(told):
    assert "addiffusion_env.agents.tabular_training" in told["trained"]
    assert not [name for name in told["trained"] if name.split(".")[0] == "ray"]
    pools = {"addiffusion_env.distributed.actor_pool", "addiffusion_env.distributed.ray_vec_env"}
    assert not pools & set(told["trained"])


def test_without_the_lab_an_error_says_where_names_come_from(told):
    before, after = told["without the lab"], told["with the lab"]
    assert "`import addiffusion_lab` or plugins=[addiffusion_lab] adds more names" in before
    assert "did you mean 'lcm'" in after and "adds more names" not in after

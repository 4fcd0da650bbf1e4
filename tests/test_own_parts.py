"""A user-defined sampler, reward term and observation key: each is a class and a line of registration."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import addiffusion_env  # noqa: F401 (registers the environments)
from addiffusion_env import AdaptivePipeline, plugins
from addiffusion_env.__main__ import main
from addiffusion_env.agents.learned import scores_used
from addiffusion_env.config import compose_config
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.evaluation.manifest import read_manifest
from addiffusion_env.observations import FEATURES
from addiffusion_env.plugins import load_plugins
from addiffusion_env.rewards import TERMS
from addiffusion_env.samplers import SAMPLERS, make_sampler, named_traits
from addiffusion_env.samplers.traits import Traits
from addiffusion_lab.claims.conflicts import uses_of

ROOT = Path(__file__).parent.parent
PLUGIN = '''
"""A sampler that stops at a good preview, a fee per decision, an observation of the budget."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from addiffusion_env.samplers import SAMPLERS
from addiffusion_env.samplers.base import BaseSampler, read_numbers
from addiffusion_env.engine.process import REFINE_PRESETS, Action
from addiffusion_env.observations import FEATURES
from addiffusion_env.observations.features import Feature
from addiffusion_env.rewards import TERMS
from addiffusion_env.rewards import RewardTerm


@dataclass(frozen=True)
class GoodEnough(BaseSampler):
    """Stops at the first preview whose preference is above a threshold."""

    threshold: float

    usage: ClassVar[str] = "good_enough:THRESHOLD"
    example: ClassVar[tuple[str, str]] = ("emoji", "good_enough:-9")
    needs_preview: ClassVar[bool] = True

    @classmethod
    def parse(cls, text):
        """``"0.5"``."""
        return cls(*read_numbers(cls, text, (float,), ","))

    @property
    def name(self):
        """``good_enough:0.5``."""
        return f"good_enough:{self.threshold:g}"

    def process(self, base):
        """Without refinement."""
        return replace(base, refine=REFINE_PRESETS["off"])

    def decide(self, requests):
        """Stop or continue."""
        scores = [request.lane.scores for request in requests]
        good = [found is not None and float(found.preference[0]) > self.threshold for found in scores]
        return [int(Action.STOP if yes else Action.CONTINUE) for yes in good]


@dataclass(frozen=True)
class DecisionFee(RewardTerm):
    """Negative fee for each *continue*."""

    fee: float = 0.5

    needs_preview = False
    pays_by = ()

    def __call__(self, transition):
        """The fee, or 0."""
        return np.where(transition.action == Action.CONTINUE, -self.fee, 0.0)


class Halfway(Feature):
    """Whether more than half of the budget is spent: (B, 1) in [0, 1]."""

    low = 0.0

    def width(self, widths):
        """1."""
        return 1

    def make(self, frame):
        """0 or 1."""
        return (frame.budget > 0.5)[:, None]


SAMPLERS.add("good_enough", "{name}:GoodEnough")
TERMS.add("decision_fee", "{name}:DecisionFee")
FEATURES.add("halfway", "{name}:Halfway")
'''
TINY = (
    "lanes=2 total_timesteps=8 checkpoint_every=8 progress_bar=false env.refine.limit=1 "
    "tabular.images=2 tabular.attempts=2 tabular.held_out=0 tabular.lanes=4 tabular.total_timesteps=32 "
    "tabular.ppo.n_steps=4 tabular.ppo.batch_size=8 tabular.ppo.n_epochs=1 "
    "ppo.n_steps=4 ppo.batch_size=8 ppo.n_epochs=1 "
    "+env.observation_keys=[timestep,halfway,cost_per_nfe] +env.reward.decision_fee.weight=1.0 "
    "report.prompts=1 +report.filmstrips=false report.samplers=[fixed:2,good_enough:-9]"
)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A module in an otherwise empty working directory; its registrations are undone afterwards."""
    name = "parts_of_mine"
    (tmp_path / f"{name}.py").write_text(PLUGIN.replace("{name}", name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.setattr(plugins, "_loaded", dict(plugins._loaded))
    for registry in (SAMPLERS, TERMS, FEATURES):
        monkeypatch.setattr(registry, "_entries", dict(registry.items()))
    yield name
    sys.modules.pop(name, None)


def run(script, *arguments):
    """Runs a script in a separate process, in the working directory; returns its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_they_work_in_all_python_interfaces(plugin, capsys):
    load_plugins([plugin])
    sampler = make_sampler("good_enough:-9")
    assert Traits.of(sampler) == named_traits("good_enough:-9")
    assert {use.scorer for use in uses_of({sampler.name: Traits.of(sampler)}, "emoji")} == {
        "emoji_preference",
        "clip",
        "dino",
    }

    settings = {
        "reward": {"decision_fee": {"weight": 2.0, "fee": 0.5}},
        "observation_keys": ["halfway", "timestep"],
        "refine": "off",
    }
    env = gym.make("AdDiffusion-Emoji-v2", steps=4, decide_every=1, check_finished=False, **settings)
    first, _ = env.reset(seed=0)
    assert first["halfway"].tolist() == [0.0]
    seen = [env.step(0) for _ in range(3)]
    assert [reward for _, reward, *_ in seen] == [-1.0] * 3
    assert seen[-1][0]["halfway"].tolist() == [1.0] and env.observation_space.contains(seen[-1][0])
    assert env.unwrapped.episodes.engine.counters.looks == 0  # neither needs a preview, so none is decoded
    assert scores_used(EnvSettings.of(**settings)) == ()  # and any scorer may judge a policy

    pipe = AdaptivePipeline.from_pretrained("emoji", policy="good_enough:-9", plugins=[plugin])
    made = pipe("a photo of a dog", seeds=0)
    assert made.actions == [[0, 1]] and made.nfe[0] < 20  # the first preview is good enough

    main(["list", "--plugins", plugin])
    listed = capsys.readouterr().out
    for words in ("good_enough:THRESHOLD", "Stops at the first preview whose", "decision_fee", "halfway"):
        assert words in listed
    for name, promise in (
        ("good_enough", "An image depends on its prompt and seed only"),
        ("decision_fee", "Every score that it depends on is declared in"),
        ("halfway", "The observation of a lane does not depend on the other lanes"),
    ):
        main(["check", name, "--plugins", plugin])
        assert promise in capsys.readouterr().out


@pytest.mark.slow
def test_scripts_load_them_and_a_run_records_them(plugin, tmp_path):
    run("train_sb3.py", f"plugins=[{plugin}]", "run_dir=run", *TINY.split())
    assert json.loads((tmp_path / "run/config.json").read_text())["plugins"] == [plugin]
    policy = json.loads((tmp_path / "run/policy/config.json").read_text())
    assert policy["plugins"] == [plugin] and set(policy["observation"]) == {"timestep", "halfway", "cost_per_nfe"}
    manifest = read_manifest(tmp_path / "run/report")
    assert plugin in manifest.settings["plugins"]
    assert [own.needs_preview for own in manifest.traits.values()] == [False, False, True]
    assert summary_of("run/report")[2]["sampler"] == "good_enough:-9"
    assert (tmp_path / "run/report/report.html").is_file()

    # Later commands need only the run's folder.
    run("train_sb3.py", "run_dir=run", *TINY.split(), "total_timesteps=16", "report=null")
    policy = json.loads((tmp_path / "run/policy/config.json").read_text())
    assert policy["provenance"]["decisions"] == 16 and policy["plugins"] == [plugin]
    run("eval_sb3.py", "policy=run", "samplers=[good_enough:-9]", "prompts=1", "out=beside", "filmstrips=false")
    assert np.isfinite([row["nfe"]["estimate"] for row in summary_of("beside")]).all()
    pipe = AdaptivePipeline.from_pretrained("run")
    assert pipe("a photo of a dog", seeds=0).nfe[0] > 0


def test_an_evaluation_loads_them(plugin):
    """In this process; the slow test above runs the scripts."""
    import eval_sb3

    arguments = ("samplers=[fixed:2,good_enough:-9]", "prompts=1", "out=out", "filmstrips=false", "progress_bar=false")
    eval_sb3.main(compose_config(eval_sb3.CONFIGS, "eval", [f"plugins=[{plugin}]", *arguments]))
    assert [row["sampler"] for row in summary_of("out")] == ["fixed:2", "good_enough:-9"]


def summary_of(folder):
    return json.loads((Path(folder) / "summary.json").read_text())["samplers"]

"""Performance regression test: the number of model calls of a scripted set of episodes.

It detects previews scored twice, prompts encoded repeatedly, and decodes that are not batched.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from pretend_mps import MPS, PretendMps, marked, send

import addiffusion_env.envs.episodes as episodes_module
from addiffusion_env.agents.learned import load_sampler
from addiffusion_env.backbones.emoji import WEIGHTS, EmojiBackbone
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.episode import play
from addiffusion_env.engine.process import ProcessConfig, RefineConfig
from addiffusion_env.envs.episodes import Episodes
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts
from addiffusion_env.scorers.emoji import emoji_scorers
from addiffusion_env.scorers.image_scores import NoScorers
from addiffusion_lab.bench.instant import make_instant

PROCESS = ProcessConfig(
    steps=4, early_exit_steps=1, refine=RefineConfig(maps="none", region="whole", renoise=1.0, steps=2)
)
SCRIPT = ((0, 0, 0, 0), (1,), (0, 1), (0, 2, 1), (0, 0, 1), (0, 0, 0, 1))
"""Actions for each prompt: the full schedule, an immediate stop, a stop after one step, a refinement and a stop, ..."""

NFE = (4, 1, 2, 4, 3, 4)  # an early exit is one evaluation, a refinement two


@contextmanager
def counted(backbone, scorers):
    """Counts calls, and rows in them, of every network: denoiser, decoders, scorers, text encoders."""
    calls, rows = Counter(), Counter()
    networks = {
        "denoiser": backbone.denoiser,
        "vae": backbone.vae.decoder,
        "preview": backbone.previewer.decoder,
        "text": backbone.parts.text_encoder,
        "clip": scorers.clip.model.visual,
        "clip_text": scorers.clip.model.transformer,
        "dino": scorers.dino.model,
    }

    def hook(name):
        def count(module, args, kwargs):
            calls[name] += 1
            first = args[0] if args else next(iter(kwargs.values()))
            rows[name] += len(first)

        return count

    handles = [net.register_forward_pre_hook(hook(name), with_kwargs=True) for name, net in networks.items()]
    try:
        yield calls, rows
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture
def fresh_prompts():
    """Six prompts that no other test has encoded."""
    return EmojiPrompts(split="test").take(6, seed=987)


def test_a_queue_costs_no_more_calls_than_its_longest_chains(emoji, scorers, fresh_prompts):
    script = dict(zip((prompt.text for prompt in fresh_prompts), SCRIPT, strict=True))
    engine = Engine(
        emoji, scorers, decider=lambda asked: [script[r.lane.prompt.text][len(r.lane.actions)] for r in asked]
    )
    coroutines = (play(emoji, PROCESS, prompt, seed=0) for prompt in fresh_prompts)
    with counted(emoji, scorers) as (calls, rows):
        results = engine.run(coroutines, max_lanes=3)
    assert tuple(episode.lane.nfe for episode in results) == NFE
    # Three lanes, refilled immediately: 4 then 4; 1 then 4; 2 then 3. Eight batches in total.
    assert engine.counters.denoiser_batches == calls["denoiser"] == 8
    assert engine.counters.denoiser_rows == rows["denoiser"] == 2 * sum(NFE)
    # One scored preview per decision, except the first and the last of each episode.
    looks = sum(len(actions) - 1 for actions in SCRIPT)
    assert engine.counters.looks == rows["preview"] == looks
    assert engine.counters.score_batches == calls["preview"]
    assert engine.counters.decodes == rows["vae"] == len(SCRIPT)
    assert rows["clip"] == rows["dino"] == looks + len(SCRIPT)
    assert calls["clip"] == calls["dino"] == calls["preview"] + calls["vae"]
    # Each prompt is encoded once, with those that begin at the same time; and the empty one perhaps, once in a process.
    assert calls["text"] == 4 and rows["text"] - len(SCRIPT) in (0, 1)
    assert calls["clip_text"] <= len(SCRIPT)


@pytest.mark.parametrize(("every", "looks"), [(1, 3), (2, 1), (4, 0)])
def test_previews_are_scored_once_per_decision(emoji, every, looks):
    episodes = Episodes(EnvSettings(emoji, steps=4, refine="off", decide_every=every), 2)
    for index in range(2):
        episodes.begin(index, index)
    with counted(emoji, episodes.scorers) as (calls, rows):
        for _ in range(4 // every):
            episodes.step([0, 0])
    assert (calls["denoiser"], rows["denoiser"]) == (4, 2 * 2 * 4)  # both lanes in one call, guided
    assert (calls["preview"], rows["preview"]) == (looks, 2 * looks)
    assert (calls["vae"], rows["vae"]) == (1, 2)
    assert calls["clip"] == calls["dino"] == looks + 1


def test_the_denoisers_features_need_no_additional_call(emoji):
    blind = {"observation_keys": "denoiser", "reward": {"terminal_bonus": 1.0, "nfe_cost": 1.0}}
    episodes = Episodes(EnvSettings.of(backbone=emoji, steps=4, refine="off", **blind), 2)
    for index in range(2):
        episodes.begin(index, index)
    with counted(emoji, episodes.scorers) as (calls, _):
        for _ in range(4):
            episodes.step([0, 0])
    assert (calls["denoiser"], calls["preview"], calls["vae"], calls["clip"]) == (4, 0, 1, 1)


def test_lanes_that_begin_together_are_encoded_together(emoji):
    episodes = Episodes(EnvSettings(emoji, steps=2, refine="off"), 5)
    with counted(emoji, episodes.scorers) as (calls, rows):
        episodes.begin_all(range(5), [411, 412, 413, 414, 415])
    assert calls["text"] == 1 and rows["text"] - 5 in (0, 1)


class Reads(PretendMps):
    """Counts the times that Python waits for a value from the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in READS and marked(args[0]):
            self.count += 1
        return super().__torch_function__(func, types, args, kwargs)


READS = {Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.nonzero}


@pytest.fixture(scope="module")
def instant_parts():
    """A backbone on the simulated device and scorers on the CPU, whose networks return at once."""
    backbone = EmojiBackbone.from_pretrained()
    scorers = emoji_scorers(WEIGHTS, "cpu")
    make_instant(backbone, scorers)
    for module in (backbone.denoiser, backbone.vae, backbone.previewer, backbone.parts.text_encoder):
        send(module)
    backbone.device = MPS
    return backbone, scorers


def test_a_step_waits_for_the_device_once_whatever_the_number_of_lanes(instant_parts):
    instant, _ = instant_parts
    prompts = EmojiPrompts(split="test").take(6, seed=4)

    def reads(lanes, steps):
        engine = Engine(instant, NoScorers(), decider=lambda asked: [0] * len(asked))
        with Reads() as device:
            made = engine.run([play(instant, ProcessConfig(steps=steps), p, 0, looks=False) for p in prompts[:lanes]])
        assert [episode.lane.nfe for episode in made] == [steps] * lanes
        assert all(0 < episode.lane.change < 1 for episode in made)
        return device.count

    assert reads(6, 5) - reads(6, 4) == reads(2, 5) - reads(2, 4) == 1
    assert reads(6, 4) == reads(2, 4)


def test_a_step_of_an_environment_makes_as_many_calls_and_reads_for_any_number_of_lanes(instant_parts, monkeypatch):
    instant, scorers = instant_parts
    monkeypatch.setattr(episodes_module, "load_scorers", lambda backbone, paths: scorers)

    def cost(lanes):
        env, found = AdDiffusionVectorEnv(lanes, backbone=instant, steps=3, refine="off"), []
        engine = env.episodes.engine.counters
        with Reads() as device, counted(instant, scorers) as (calls, _):
            env.reset(seed=3000 + 10 * lanes)
            for _ in range(3):
                start = np.array([device.count, calls["text"], *counts_of(engine)])
                env.step(np.zeros(lanes, int))
                found.append(np.array([device.count, calls["text"], *counts_of(engine)]) - start)
        return np.array(found)

    few, many = cost(2), cost(6)
    assert (few == many).all()
    assert many[:, 1:].tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [1, 1, 0, 1]]  # the last step begins the next episodes
    assert many[:, 0].max() <= 8


def counts_of(counters):
    return counters.denoiser_batches, counters.score_batches, counters.decode_batches


def test_a_decision_of_a_policy_reads_as_often_for_any_number_of_lanes(instant_parts):
    instant, scorers = instant_parts
    sampler = load_sampler("emoji")
    sampler.bind(instant, scorers)
    prompts = EmojiPrompts(split="test").take(6, seed=5)

    def reads(lanes, steps):
        engine = Engine(instant, scorers, decider=lambda asked: [0 * action for action in sampler.decide(asked)])
        with Reads() as device:
            engine.run([play(instant, ProcessConfig(steps=steps), p, 0) for p in prompts[:lanes]])
        return device.count

    assert reads(6, 5) - reads(6, 4) == reads(2, 5) - reads(2, 4) > 0
    assert reads(6, 4) == reads(2, 4)

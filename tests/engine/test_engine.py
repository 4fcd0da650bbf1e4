"""Lanes in one batch: the same images as one at a time, at mixed noise levels, with refilled lanes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.episode import play
from addiffusion_env.engine.lane import Evaluate
from addiffusion_env.engine.process import REFINE_PRESETS, ProcessConfig, RefineConfig
from addiffusion_env.errors import ConfigError, DeviceMemoryError, NumericsError

PROCESS = ProcessConfig(steps=4, refine=RefineConfig(maps="none", region="whole", renoise=1.0))


def scripted(scripts):
    """A decider that takes a fixed list of actions for each prompt."""

    def decide(requests):
        return [scripts[r.lane.prompt.text][len(r.lane.actions)] for r in requests]

    return decide


def episodes(engine, emoji, prompts, scripts, max_lanes):
    engine.decider = scripted(scripts)
    coroutines = [play(emoji, PROCESS, prompt, seed=3, looks=False) for prompt in prompts]
    found = dict(engine.stream(iter(coroutines), max_lanes=max_lanes))
    return [found[index] for index in range(len(prompts))]


@pytest.fixture(scope="module")
def scripts(prompts):
    patterns = [[0, 0, 0, 0], [1], [0, 1], [0, 2, 0, 0, 0], [0, 0, 1], [0, 0, 2, 1], [1]]
    return {prompt.text: pattern for prompt, pattern in zip(prompts, patterns, strict=True)}


@pytest.fixture(scope="module")
def played(emoji, scorers, prompts, scripts):
    """Every prompt's episode, all at once, and the engine's counters."""
    engine = Engine(emoji, scorers)
    return episodes(engine, emoji, prompts, scripts, max_lanes=7), engine.counters


@pytest.fixture(scope="module")
def one_by_one(emoji, scorers, prompts):
    """Images of one and two evaluations in two lanes, which end at different times; each is decoded alone."""
    return short_episodes(emoji, scorers, prompts, decode_batch=1)


def short_episodes(emoji, scorers, prompts, decode_batch):
    process = replace(PROCESS, steps=2, early_exit_steps=1)
    scripts = {prompt.text: [0, 0] if place % 3 else [1] for place, prompt in enumerate(prompts)}
    engine = Engine(emoji, scorers, decider=scripted(scripts))
    coroutines = (play(emoji, process, prompt, seed=3, looks=False) for prompt in prompts * 2)
    return dict(engine.stream(coroutines, max_lanes=2, decode_batch=decode_batch)), engine.counters


def test_a_lane_does_not_depend_on_its_neighbours(played, emoji, scorers, prompts, scripts):
    together, _ = played
    queued = episodes(Engine(emoji, scorers), emoji, prompts, scripts, max_lanes=3)  # refilled after others have ended
    for index in (0, 3, 5):
        alone = episodes(Engine(emoji, scorers), emoji, [prompts[index]], scripts, max_lanes=1)[0]
        for other in (together[index], queued[index]):
            assert other.lane.actions == alone.lane.actions
            torch.testing.assert_close(other.image.tensor, alone.image.tensor, atol=1e-4, rtol=0)
            torch.testing.assert_close(other.lane.latents.x, alone.lane.latents.x, atol=1e-4, rtol=0)


def test_refilling_keeps_lanes_busy(one_by_one):
    images, counters = one_by_one
    assert {image.lane.nfe for image in images.values()} == {1, 2} and counters.utilisation > 0.9


def test_counts_of_calls(played, prompts):
    done, counters = played
    assert counters.evaluations == sum(episode.lane.nfe for episode in done)
    assert counters.denoiser_rows == sum(episode.lane.calls for episode in done)
    assert counters.decodes == len(prompts)
    assert counters.looks == 0
    # One denoiser call per round; the longest lane determines the number of rounds.
    assert counters.denoiser_batches == max(episode.lane.nfe for episode in done)


def test_nfe_of_each_action(played):
    # steps=4, auto early exit: at most the remaining steps; a whole-image refinement costs k = 2.
    assert [episode.lane.nfe for episode in played[0]] == [4, 4, 4, 6, 4, 6, 4]


def test_max_batch_does_not_change_the_images(emoji, scorers, prompts, scripts):
    whole = episodes(Engine(emoji, scorers), emoji, prompts[:3], scripts, max_lanes=3)
    halved = Engine(emoji, scorers, max_batch=2)
    parts = episodes(halved, emoji, prompts[:3], scripts, max_lanes=3)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a.image.tensor, b.image.tensor, atol=1e-4, rtol=0)


def test_decodes_wait_for_each_other_only_while_lanes_are_busy(one_by_one, emoji, scorers, prompts):
    (one, alone), (four, together) = one_by_one, short_episodes(emoji, scorers, prompts, decode_batch=4)
    assert alone.decodes == together.decodes == len(one) == len(four) == 14
    # 14 images in fours while there is a queue; the last ones as lanes run empty.
    assert together.decode_batches <= 5 < alone.decode_batches
    assert together.utilisation >= alone.utilisation
    for index in one:
        torch.testing.assert_close(one[index].image.tensor, four[index].image.tensor, atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_new_attempt_after_a_finished_image_gets_a_lane(emoji, scorers, prompts, batch):
    prompts = prompts[:4]
    process = ProcessConfig(steps=3, decide_at=(2,), check_finished=True, refine=REFINE_PRESETS["resample_short"])
    scripts = {p.text: [0, 0, 2, 1] if i % 2 else [0, 0, 1] for i, p in enumerate(prompts)}
    engine = Engine(emoji, scorers, decider=scripted(scripts))
    coroutines = (play(emoji, process, prompt, seed=3) for prompt in prompts)
    found = dict(engine.stream(coroutines, max_lanes=2, decode_batch=batch))
    assert [list(found[i].lane.actions) for i in range(len(prompts))] == [scripts[p.text] for p in prompts]
    assert engine.counters.evaluations == sum(episode.lane.nfe for episode in found.values())


def test_coroutines_are_started_when_there_is_a_lane(emoji, scorers, prompts, scripts):
    started = []

    def coroutines():
        for prompt in prompts:
            started.append(prompt.text)
            yield play(emoji, PROCESS, prompt, seed=3, looks=False)

    stream = Engine(emoji, scorers, decider=scripted(scripts)).stream(coroutines(), max_lanes=2)
    next(stream)
    assert len(started) <= 3
    stream.close()


def test_nan_from_the_denoiser_names_prompt_and_sigma(emoji, scorers, prompts, monkeypatch):
    engine = Engine(emoji, scorers, decider=lambda requests: [0] * len(requests))
    true = emoji.predict

    def broken(*args, **kwargs):
        found = true(*args, **kwargs)
        x0 = found.x0.clone()
        x0[1] = float("nan")
        return replace(found, x0=x0)

    monkeypatch.setattr(emoji, "predict", broken)
    coroutines = [play(emoji, PROCESS, prompt, 0, looks=False) for prompt in prompts[:3]]
    with pytest.raises(NumericsError, match=r"1 of 3 lanes, here at sigma 14\.6.*red cup"):
        engine.run(coroutines)


@pytest.mark.parametrize(
    ("method", "doing"),
    [("predict", "evaluating the denoiser"), ("preview", "scoring previews"), ("decode", "decoding finished")],
)
def test_the_out_of_memory_error_names_remedies(emoji, scorers, prompts, monkeypatch, method, doing):
    def full(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(emoji, method, full)
    engine = Engine(emoji, scorers, decider=lambda requests: [0] * len(requests))
    coroutines = [play(emoji, PROCESS, prompt, 0, looks=True) for prompt in prompts[:3]]
    with pytest.raises(
        DeviceMemoryError, match=f"cpu ran out of memory {doing}.*: 3 lanes of backbone 'emoji'"
    ) as caught:
        engine.run(coroutines)
    for remedy in ("fewer lanes", "vae_tiling", "offload"):
        assert remedy in caught.value.remedy


def test_deciding_without_a_policy_is_refused(emoji, scorers, prompts):
    with pytest.raises(ConfigError, match="no policy"):
        Engine(emoji, scorers).run([play(emoji, PROCESS, prompts[0], 0)])


def test_bad_decode_batch(engine):
    with pytest.raises(ConfigError, match="decode_batch must be at least 1, got 0"):
        list(engine.stream([], max_lanes=1, decode_batch=0))


def test_bad_lane_count(engine):
    with pytest.raises(ConfigError, match="max_lanes must be at least 1"):
        list(engine.stream(iter([]), max_lanes=0))


def test_an_evaluation_without_a_step_leaves_the_latents_unchanged(emoji, engine, prompts):
    from addiffusion_env.engine.lane import open_lane

    lane = open_lane(emoji, PROCESS, prompts[0], 0)
    stay = Evaluate(lane.latents, lane.conditioning, None, 1.0, False, "")
    [outcome] = engine.evaluate([stay])
    assert outcome.latents is lane.latents
    assert outcome.calls == 1
    assert np.isfinite(outcome.x0.numpy()).all()

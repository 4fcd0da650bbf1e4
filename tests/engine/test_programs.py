"""Effects and costs of the actions on a lane: early exit, and every kind of refinement."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from addiffusion_env.engine.coroutines import act, advance, env_step, legal_actions, refine_levels, score_preview
from addiffusion_env.engine.lane import open_lane, restore_lane
from addiffusion_env.engine.process import REFINE_PRESETS, Action, ProcessConfig, RefineConfig
from addiffusion_env.errors import AdDiffusionError, ConfigError, ScorerError
from addiffusion_env.scorers.image_scores import utilities_of
from addiffusion_env.scorers.utility import Utility

RESAMPLE = ProcessConfig(steps=4, refine=REFINE_PRESETS["resample_short"])


KNOWN = {}
"""Lanes are values: what several tests begin with is played once."""


def advanced(engine, emoji, process, prompt, steps, seed=0):
    if steps == 0:
        return open_lane(emoji, process, prompt, seed)
    key = (repr(process), prompt.prompt_id, seed, steps)
    if key not in KNOWN:
        [KNOWN[key]] = engine.run([advance(process, advanced(engine, emoji, process, prompt, steps - 1, seed))])
    return KNOWN[key]


def test_continue_is_a_step_of_the_schedule(engine, emoji, prompts):
    lane = open_lane(emoji, RESAMPLE, prompts[0], 0)
    [after] = engine.run([act(emoji, RESAMPLE, lane, Action.CONTINUE)])
    assert (after.step, after.nfe, after.calls, after.remaining) == (1, 1, 2, 3)
    assert after.sigma == float(emoji.sigmas(4, "trailing")[1])
    assert lane.step == 0  # lanes are values


def test_decide_every_sets_the_length_of_continue(engine, emoji, prompts):
    process = replace(RESAMPLE, decide_every=3)
    lane = open_lane(emoji, process, prompts[0], 0)
    [after] = engine.run([act(emoji, process, lane, Action.CONTINUE)])
    [end] = engine.run([act(emoji, process, after, Action.CONTINUE)])
    assert (after.nfe, end.nfe, end.remaining) == (3, 4, 0)


@pytest.mark.parametrize(("early_exit", "nfe"), [(0, 2), (1, 3), (2, 4), (9, 6), ("auto", 6)])
def test_stop_takes_early_exit_steps_evaluations(engine, emoji, prompts, early_exit, nfe):
    process = replace(RESAMPLE, steps=6, early_exit_steps=early_exit)
    lane = advanced(engine, emoji, process, prompts[0], 2)
    [exited] = engine.run([act(emoji, process, lane, Action.STOP)])
    assert exited.remaining == 0
    assert exited.nfe == nfe
    if early_exit == 0:  # the result is the predicted x0
        assert torch.equal(exited.latents.x, lane.x0)


def test_a_stop_before_the_first_prediction_takes_one_evaluation(engine, emoji, prompts):
    process = replace(RESAMPLE, early_exit_steps=0)
    [exited] = engine.run([act(emoji, process, open_lane(emoji, process, prompts[0], 0), Action.STOP)])
    assert (exited.nfe, exited.remaining) == (1, 0)


def test_masks(engine, emoji, prompts):
    process = replace(RESAMPLE, refine=replace(RESAMPLE.refine, limit=1, first_step=2))
    lane = open_lane(emoji, process, prompts[0], 0)
    assert legal_actions([lane], process)[0].tolist() == [True, True, False]  # no image yet
    lane = advanced(engine, emoji, process, prompts[0], 1)
    assert legal_actions([lane], process)[0].tolist() == [True, True, False]  # before first_step
    lane = advanced(engine, emoji, process, prompts[0], 2)
    assert legal_actions([lane], process)[0].tolist() == [True, True, True]
    [refined] = engine.run([act(emoji, process, lane, Action.REFINE)])
    assert legal_actions([refined], process)[0].tolist() == [True, True, False]  # the limit


# region evaluations + k: none + 2; attention 1 + 2; phrases (1 + P) / 2 + 2 with P = 2 phrases.
@pytest.mark.parametrize(
    ("preset", "nfe"), [("resample_short", 2), ("as_published", 3), ("weakest", 3.5), ("union", 3.5)]
)
def test_every_evaluation_of_a_refinement_is_counted(engine, emoji, prompts, preset, nfe):
    process = replace(RESAMPLE, refine=REFINE_PRESETS[preset])
    lane = advanced(engine, emoji, process, prompts[1], 2)
    [lane] = engine.run([score_preview(lane)])
    rows = engine.counters.denoiser_rows
    [after] = engine.run([act(emoji, process, lane, Action.REFINE)])
    assert after.nfe - lane.nfe == nfe
    assert after.calls - lane.calls == engine.counters.denoiser_rows - rows
    assert (after.sigma, after.step, after.refinements) == (lane.sigma, lane.step, 1)
    assert len(after.masks) == (0 if preset == "resample_short" else 1)


def test_a_masked_refinement_leaves_the_outside_unchanged(engine, emoji, prompts, monkeypatch):
    from addiffusion_env.engine import regions

    left = torch.zeros(1, 1, 16, 16)
    left[..., :8] = 1
    monkeypatch.setattr(regions, "attention_mask", lambda *args: left)
    process = replace(RESAMPLE, refine=RefineConfig(renoise=1.0))
    lane = advanced(engine, emoji, process, prompts[1], 2)
    [after] = engine.run([act(emoji, process, lane, Action.REFINE)])
    torch.testing.assert_close(after.latents.x[..., 8:], lane.latents.x[..., 8:], atol=1e-4, rtol=1e-4)
    assert (after.latents.x[..., :8] - lane.latents.x[..., :8]).abs().mean() > 0.1


def test_each_refinement_has_new_noise_and_is_reproducible(engine, emoji, prompts):
    lane = advanced(engine, emoji, RESAMPLE, prompts[1], 2)
    [first] = engine.run([act(emoji, RESAMPLE, lane, Action.REFINE)])
    [again] = engine.run([act(emoji, RESAMPLE, lane, Action.REFINE)])
    [second] = engine.run([act(emoji, RESAMPLE, first, Action.REFINE)])
    assert torch.equal(first.latents.x, again.latents.x)
    assert not torch.allclose(first.latents.x, second.latents.x, atol=0.1)


@pytest.mark.parametrize(("margin", "kept"), [(-100.0, True), (100.0, False)])
def test_a_result_is_accepted_or_rejected_by_score(engine, emoji, prompts, margin, kept):
    process = replace(RESAMPLE, refine=replace(RESAMPLE.refine, accept="score", margin=margin))
    lane = advanced(engine, emoji, process, prompts[1], 2)
    [lane] = engine.run([score_preview(lane)])
    [after] = engine.run([act(emoji, process, lane, Action.REFINE)])
    assert torch.equal(after.latents.x, lane.latents.x) is not kept
    assert after.nfe == lane.nfe + 2  # charged in both cases
    assert after.refinements == 1


def test_renoise_sets_the_first_level_of_a_refinement(engine, emoji, prompts):
    lane = advanced(engine, emoji, RESAMPLE, prompts[0], 3)
    full = emoji.sigmas(4, "trailing")
    whole = refine_levels(emoji, RESAMPLE, lane)[0]
    assert whole[0] == pytest.approx(full[0]) and whole[-1] == pytest.approx(lane.sigma)
    near = refine_levels(emoji, replace(RESAMPLE, refine=replace(RESAMPLE.refine, renoise=1 / 3)), lane)[0]
    assert near[0] == pytest.approx(full[2])
    assert (np.diff(whole) < 0).all()


def test_a_lane_survives_its_state(engine, emoji, prompts):
    lane = advanced(engine, emoji, RESAMPLE, prompts[2], 2, seed=5)
    [lane] = engine.run([score_preview(lane)])
    again = restore_lane(emoji, lane.state())
    [a], [b] = engine.run([advance(RESAMPLE, lane)]), engine.run([advance(RESAMPLE, again)])
    assert torch.equal(a.latents.x, b.latents.x)
    assert (a.nfe, a.change, a.step) == (b.nfe, b.change, b.step)
    np.testing.assert_array_equal(lane.scores.preference, again.scores.preference)


def test_a_state_saved_with_one_prediction_is_still_read(engine, emoji, prompts):
    lane = advanced(engine, emoji, RESAMPLE, prompts[2], 2, seed=5)
    state = lane.state()
    again = restore_lane(emoji, {**state, "latents": state["latents"][:4]})
    assert torch.isnan(again.latents.history.older_sigma).all()
    [a], [b] = engine.run([advance(RESAMPLE, lane)]), engine.run([advance(RESAMPLE, again)])
    assert torch.equal(a.latents.x, b.latents.x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"maps": "atention"}, "did you mean 'attention'"),
        ({"region": "whole"}, "needs refine.maps=none"),
        ({"renoise": 1.5}, r"renoise must be in \[0, 1\], got 1.5"),
        ({"fraction": 0.0}, "fraction must be in"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"first_step": 0}, "first_step must be at least 1"),
    ],
)
def test_bad_refinements_are_refused(settings, message):
    with pytest.raises(AdDiffusionError, match=message):
        RefineConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"decide_every": 0}, "decide_every must be at least 1"),
        ({"early_exit_steps": "soon"}, "early_exit_steps must be a number or 'auto', got 'soon'"),
        ({"early_exit_steps": -1}, "at least 0, got -1"),
    ],
)
def test_bad_processes_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ProcessConfig(**settings)


CHECKED = ProcessConfig(
    steps=4,
    early_exit_steps=1,
    guidance_interval=(3.0, 9.0),
    decide_at=(2, 3),
    check_finished=True,
    refine=replace(REFINE_PRESETS["resample_keep_best"], return_to=2, limit=2),
)


def played(engine, emoji, prompt, actions):
    """The lane and the image (or ``None``) after some decisions of the process ``CHECKED``."""
    if not actions:
        return open_lane(emoji, CHECKED, prompt, 0), None
    key = (prompt.prompt_id, *actions)
    if key not in KNOWN:
        *before, action = actions
        lane, image = played(engine, emoji, prompt, before)
        assert image is None and legal_actions([lane], CHECKED)[0][action]
        [KNOWN[key]] = engine.run([env_step(emoji, CHECKED, lane, action)])
    return KNOWN[key]


def test_continue_runs_to_the_next_decision(engine, emoji, prompts):
    lane, image = played(engine, emoji, prompts[0], [Action.CONTINUE])
    assert (lane.step, image) == (2, None) and lane.scores is not None
    lane, image = played(engine, emoji, prompts[0], [Action.CONTINUE, Action.CONTINUE])
    assert (lane.step, image) == (3, None)
    # Evaluations at sigma 14.6 and below 3 are unguided: half an NFE each.
    assert lane.nfe == CHECKED.nfe_of(emoji.sigmas(4, "trailing")[:3]) == 2.0 and lane.calls == 4


@pytest.mark.parametrize("actions", [[0, 0, 0], [0, 1], [1]], ids=["full schedule", "early exit", "immediate exit"])
def test_a_finished_image_waits_to_be_accepted(engine, emoji, prompts, actions):
    lane, image = played(engine, emoji, prompts[0], actions)
    assert image is None and lane.shown is not None and lane.remaining == 0
    assert legal_actions([lane], CHECKED)[0].tolist() == [False, True, True]
    spent = lane.nfe
    taken, image = played(engine, emoji, prompts[0], [*actions, Action.STOP])
    assert torch.equal(image.tensor, lane.shown.tensor) and taken.nfe == spent
    assert taken.actions == (*actions, Action.STOP)


def test_a_new_attempt_returns_early_and_the_best_image_is_returned(engine, emoji, prompts):
    first, _ = played(engine, emoji, prompts[1], [0, 0, 0])
    again, _ = played(engine, emoji, prompts[1], [0, 0, 0, Action.REFINE])
    assert (again.step, again.refinements, again.shown) == (2, 1, None) and again.best is not None
    assert again.nfe == first.nfe + CHECKED.nfe_of(emoji.sigmas(4, "trailing")[:2])
    second, _ = played(engine, emoji, prompts[1], [0, 0, 0, Action.REFINE, 0, 0])
    assert not torch.allclose(second.shown.tensor, first.shown.tensor, atol=0.05)
    _, given = played(engine, emoji, prompts[1], [0, 0, 0, Action.REFINE, 0, 0, Action.STOP])
    utility = CHECKED.refine.utility
    best = max((first.shown, second.shown), key=lambda image: image.scores.utility(utility))
    assert torch.equal(given.tensor, best.tensor)


def test_utilities_of_a_batch_are_those_of_its_images(engine, emoji, prompts):
    shown = [played(engine, emoji, prompt, [0, 0, 0])[0].shown for prompt in prompts[:2]]
    by_preference, calibrated = Utility(), Utility(calibrator="emoji")
    scores = [shown[0].scores, shown[1].scores, ScorerError("no score", ""), shown[0].scores]
    found = utilities_of([calibrated, calibrated, calibrated, by_preference], scores)
    assert found[2] is None and utilities_of([None], scores[:1]) == [None]
    expected = [scores[0].utility(calibrated), scores[1].utility(calibrated), scores[0].utility(by_preference)]
    assert [found[0], found[1], found[3]] == pytest.approx(expected, rel=1e-9)
    assert len(set(expected)) == 3
    assert shown[0].utility == pytest.approx(scores[0].utility(CHECKED.refine.utility), rel=1e-9)


def test_after_the_last_attempt_there_is_no_decision(engine, emoji, prompts):
    once = [0, 0, 0]
    lane, image = played(engine, emoji, prompts[0], [*once, 2, 0, 0, 2, 0, 0])
    assert image is not None and lane.refinements == 2


def test_a_waiting_image_survives_its_state(engine, emoji, prompts):
    lane, _ = played(engine, emoji, prompts[0], [0, 0, 0, Action.REFINE, 0, 0])
    back = restore_lane(emoji, lane.state())
    assert torch.equal(back.shown.tensor, lane.shown.tensor) and torch.equal(back.best.tensor, lane.best.tensor)
    assert legal_actions([back], CHECKED)[0].tolist() == legal_actions([lane], CHECKED)[0].tolist()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decide_at": (3, 2)}, "increasing steps from 1 to 3"),
        ({"decide_at": (2, 3), "decide_every": 2}, "both given"),
        ({"guidance_interval": (5.0, 2.0)}, "low <= high"),
        ({"check_finished": False}, "check_finished is false"),
        ({"refine": replace(CHECKED.refine, return_to=4)}, "not before the end"),
    ],
)
def test_impossible_processes_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        replace(CHECKED, **changes)


def test_return_to_needs_a_whole_image_resample():
    with pytest.raises(ConfigError, match="needs a whole-image resample"):
        RefineConfig(return_to=2)

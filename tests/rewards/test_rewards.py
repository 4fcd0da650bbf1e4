"""Reward terms against closed forms; shaping that cannot reward idling; presets."""

import sys
import types

import numpy as np
import pytest

from addiffusion_env.checks.base import hold
from addiffusion_env.checks.rewards import REWARD_CONTRACTS
from addiffusion_env.errors import AdDiffusionError, ConfigError
from addiffusion_env.rewards import PRESETS, TERMS, PreferenceGain, TermConfig, TerminalBonus, Transition, make_reward

NAN = float("nan")


def transition(before=(NAN,), after=(0.0,), terminal=(False,), nfe=(1.0,), cost_per_nfe=(0.01,), dino=(0.0,)):
    scores = [np.array(v, dtype=float) for v in (before, after, before, after, dino)]
    costs = [np.array(v, dtype=float) for v in (nfe, cost_per_nfe)]
    return Transition(
        *scores,
        np.zeros((len(after), 4)),
        *costs,
        np.zeros(len(after), int),
        np.array(terminal),
    )


def episode(scores):
    """The transitions of one lane with the given preview scores; the last is that of the finished image."""
    values = [NAN, *scores]
    return [
        transition((a,), (b,), (index == len(scores) - 1,))
        for index, (a, b) in enumerate(zip(values, values[1:], strict=False))
    ]


@pytest.mark.parametrize("name", TERMS)
def test_every_term_passes_its_contracts(name):
    assert len(hold(REWARD_CONTRACTS, TERMS.load(name))) == len(REWARD_CONTRACTS)


@pytest.mark.parametrize("scores", [[1.0], [0.5, 2.0], [-1.0, 3.0, 0.2, 0.2, 0.2], [2.0] * 30])
def test_shaping_telescopes_to_zero(scores):
    total = sum(float(PreferenceGain()(step)[0]) for step in episode(scores))
    assert total == pytest.approx(0)


def test_discounted_shaping_telescopes_too():
    gamma, scores = 0.9, [1.0, -2.0, 0.5, 3.0]
    total = sum(gamma**t * float(PreferenceGain(gamma=gamma)(s)[0]) for t, s in enumerate(episode(scores)))
    assert total == pytest.approx(0)


def test_the_published_gain_sums_to_the_final_score():
    total = sum(float(PreferenceGain(telescopes=0.0)(s)[0]) for s in episode([1.0, 2.0, 4.0]))
    assert total == pytest.approx(3.0)


def test_terminal_bonus_saturates_and_waits_for_the_end():
    two = transition((0, 0), (0.3, 0.3), (False, True), (1, 1), (0, 0), (0, 0))
    np.testing.assert_allclose(TerminalBonus()(two), [0, 0.3])
    np.testing.assert_allclose(TerminalBonus(centre=0.3, width=0.5)(two), [0, 0.5])
    high = transition((0,), (50.0,), (True,))
    assert TerminalBonus(width=0.4)(high)[0] == pytest.approx(1)


@pytest.mark.parametrize("preset", PRESETS)
def test_terms_sum_to_the_reward(preset):
    reward, terms = make_reward(preset)(transition((0.5,), (1.0,), (True,), dino=(0.9,)))
    assert set(terms) == set(TERMS)
    assert reward[0] == pytest.approx(sum(values[0] for values in terms.values()))


def test_idling_is_rewarded_as_published_and_costs_by_default():
    idle = transition((1.0,), (1.0,), dino=(1.0,), cost_per_nfe=(0.014,))
    assert make_reward("as_published")(idle)[0][0] == pytest.approx(0.75 - 0.014)
    assert make_reward("default")(idle)[0][0] == pytest.approx(-0.014)


def test_cost_counts_every_evaluation():
    reward = make_reward({"nfe_cost": 2.0})
    assert reward(transition(nfe=(3.5,), cost_per_nfe=(0.1,)))[0][0] == pytest.approx(-0.7)


def test_a_mapping_changes_a_preset():
    reward = make_reward({"preset": "default", "terminal_bonus": {"width": 0.0}, "clip_gain": 0.5})
    assert reward.terms["terminal_bonus"] == TermConfig(1.0, {"centre": 0.0, "width": 0.0})
    assert reward.terms["clip_gain"].weight == 0.5
    assert reward.terms["nfe_cost"] == PRESETS["default"]["nfe_cost"]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"preset": "publshed"}, "unknown reward preset"),
        ({}, "no terms"),
        ({"nfe_cost": float("inf")}, "finite"),
        ({"dino_stability": {"weight": 1, "centre": 2}}, "unknown setting of reward term 'dino_stability' 'centre'"),
        ({"nfe_cost": {"wieght": 1}}, "did you mean 'weight'"),
    ],
)
def test_bad_rewards(reward, message):
    with pytest.raises(AdDiffusionError, match=message):
        make_reward(reward)


def test_gains_are_counted_in_a_fixed_standard_deviation():
    step = transition((1.0,), (1.5,))
    reward = make_reward("as_published")
    assert reward(step)[1]["clip_gain"][0] == pytest.approx(5.0)
    assert reward(step)[1]["preference_gain"][0] == pytest.approx(0.5)


def test_a_function_is_not_a_term(monkeypatch):
    """Terms of earlier versions were functions."""
    user = types.ModuleType("users_terms")
    user.old = lambda transition, scale, fee=0.1: np.zeros(len(transition.action))
    monkeypatch.setitem(sys.modules, "users_terms", user)
    monkeypatch.setitem(TERMS._entries, "old", "users_terms:old")
    with pytest.raises(ConfigError, match=r"reward term 'old' is registered as <function .* expected a subclass"):
        make_reward({"old": 1.0})

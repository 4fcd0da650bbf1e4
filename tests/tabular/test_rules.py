"""Rules on a table: what they accept, what they cost, and how the best one is chosen; their imitation."""

import numpy as np
import pytest

from addiffusion_env.agents.algorithms import make_model
from addiffusion_env.agents.imitation import Demonstrations, _returns, imitate
from addiffusion_env.agents.tabular_training import greedy
from addiffusion_env.samplers.checked_attempts import Rule
from addiffusion_env.tabular.outcomes import play_table
from addiffusion_env.tabular.rules import best_rule, frontier, play_rule, rules_of, thresholds_of
from addiffusion_env.tabular.tabular_env import TabularVecEnv

ALWAYS, NEVER = -np.inf, np.inf


def test_a_rule_exits_early_then_takes_whole_attempts(from_start):
    mdp, _ = from_start
    table = mdp.table
    outcomes = play_rule(mdp, Rule(NEVER, attempts=3, early=2)).outcomes
    assert set(outcomes.actions) == {(1, 2, 1, 2, 0, 0, 0)}  # nothing is accepted before the last attempt
    expected = table.nfe[:, :2, -1].sum(1) + table.nfe[:, 2, table.finish]
    np.testing.assert_allclose(outcomes.nfe, expected)
    drawn = np.stack([mdp.utilities[:, 0, -1], mdp.utilities[:, 1, -1], mdp.utilities[:, 2, table.finish]])
    returned = mdp.utility(outcomes.preference, outcomes.clip_score, table.clip_text)
    np.testing.assert_allclose(returned, drawn.max(0), rtol=1e-6)
    assert np.ptp(drawn, axis=0).max() > 0, "the attempts differ, so the best of them is a choice"


def test_a_rule_accepts_from_its_threshold(from_start):
    mdp, _ = from_start
    first = mdp.utilities[:, 0, -1]
    between = float((first.min() + first.max()) / 2)
    outcomes = play_rule(mdp, Rule(between, attempts=2, early=2)).outcomes
    assert 0 < (first >= between).sum() < len(first)
    np.testing.assert_array_equal(outcomes.finishes == 1, first >= between)
    single = play_rule(mdp, Rule(ALWAYS, attempts=3, early=1)).outcomes
    np.testing.assert_allclose(single.nfe, mdp.table.nfe[:, 0, -1])


def test_a_preview_below_its_threshold_is_abandoned(from_start):
    mdp, _ = from_start
    outcomes = play_rule(mdp, Rule(ALWAYS, attempts=3, abandon=NEVER)).outcomes
    assert set(outcomes.actions) == {(0, 2, 0, 2, 0, 0, 0)}  # the last attempt is not abandoned


def test_the_best_rule_moves_along_the_frontier(from_start):
    mdp, _ = from_start
    played = [play_rule(mdp, rule) for rule in rules_of(mdp, thresholds_of(mdp, 5))]
    assert len({one.rule for one in played}) == len(played)
    best = frontier(played)
    assert all(a.nfe < b.nfe and a.mean_probability < b.mean_probability for a, b in zip(best, best[1:], strict=False))
    assert best_rule(played, 0.0).mean_probability == best[-1].mean_probability
    assert best_rule(played, 100.0).nfe == min(one.nfe for one in played)
    for one in played:  # no rule is above the frontier
        assert one.mean_probability <= max(other.mean_probability for other in best if other.nfe <= one.nfe)


def test_returns_are_sums_to_the_end_of_an_episode():
    rewards = np.array([[1.0], [2.0], [4.0], [8.0]])
    whole, returns = _returns(rewards, np.array([[False], [True], [False], [False]]))
    assert whole[:, 0].tolist() == [True, True, False, False] and returns[:2, 0].tolist() == [3.0, 2.0]


@pytest.mark.parametrize("algorithm", ["maskable_ppo", "ppo"])
def test_imitation_takes_the_actions_of_the_best_rules(from_start, algorithm):
    mdp, settings = from_start
    played = [play_rule(mdp, rule) for rule in rules_of(mdp, thresholds_of(mdp, 5))]
    env = TabularVecEnv(mdp, settings, 16, seed=1)
    shown = Demonstrations(env, played, 600)
    assert shown.masks[np.arange(len(shown)), shown.actions].all() and len(shown) >= 400
    learner = make_model(algorithm, TabularVecEnv(mdp, settings, 4), {"n_steps": 4, "batch_size": 8}, 0, "cpu")
    before = play_table(mdp, greedy(learner.policy), mdp.table.observer(settings.keys()), 0.0)
    assert imitate(learner, shown, epochs=30, batch_size=64) > 0.9
    best = best_rule(played, 0.0)
    after = play_table(mdp, greedy(learner.policy), mdp.table.observer(settings.keys()), 0.0)
    wanted = best.outcomes.actions
    same = [sum(a == b for a, b in zip(found.actions, wanted, strict=True)) for found in (before, after)]
    assert same[1] > same[0] and same[1] >= 3

"""A policy that behaves the same for every prompt is reported as collapsed; one that adapts is not."""

import pytest
from eval_records import record

from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.collapse import behaviour, describe, regret_in, step_entropy

ALWAYS = [record("policy", n, nfe=10, actions=(0,) * 10) for n in range(64)]
ADAPTIVE = [
    record("policy", n, nfe=4 + 2 * (n % 4), actions=(0,) * (3 + n % 4) + ((2, 1) if n % 3 == 0 else (1,)))
    for n in range(64)
]


def test_always_continuing_is_collapse():
    found = behaviour(ALWAYS)
    assert found.collapsed
    assert found.constant_share == 1.0
    assert found.step_entropy == found.behaviour_entropy == found.nfe_spread == 0.0
    assert found.action_shares == (1.0, 0.0, 0.0)
    assert "continue x10" in found.reason


def test_stopping_everybody_at_one_step_is_collapse_too():
    stops = [record("policy", n, actions=(0, 0, 1)) for n in range(64)]
    assert behaviour(stops).collapsed  # both actions occur, and still nothing depends on the prompt


def test_a_rare_exception_does_not_hide_it():
    rare = [*ALWAYS[:62], *ADAPTIVE[62:]]
    assert behaviour(rare).collapsed


def test_an_adaptive_policy_is_not_collapsed():
    found = behaviour(ADAPTIVE)
    assert not found.collapsed
    assert found.constant_share < 0.3
    assert found.behaviours == 8
    assert found.step_entropy > 0.2
    assert sum(found.action_shares) == pytest.approx(1.0)


def test_varying_what_is_spent_is_no_collapse_even_without_decisions():
    rule = [record("prompt_rule:8,6", n, nfe=(8, 6)[n % 3 == 0], actions=(0,) * (8, 6)[n % 3 == 0]) for n in range(60)]
    assert behaviour(rule).step_entropy == 0.0
    assert not behaviour(rule).collapsed


def test_entropy_of_a_fair_choice_is_one_bit():
    assert step_entropy([(0,), (1,)]) == 1.0
    assert step_entropy([(0, 0), (0, 1), (0, 0), (0, 1)]) == 0.5  # none at the first decision, one bit at the second
    assert step_entropy([]) == 0.0
    assert describe(()) == "nothing"


def test_regret_against_planted_utilities():
    cost_per_nfe = 0.1
    easy = {4: 1.0, 8: 1.2}
    hard = {4: -1.0, 8: 1.0}
    constants = {
        f"fixed:{nfe}": [
            record(f"fixed:{nfe}", n, nfe=nfe, preference=(easy, hard)[n % 2][nfe], correct=n % 2 == 0 or nfe == 8)
            for n in range(10)
        ]
        for nfe in (4, 8)
    }
    # The best constant is 8: (1.2 + 1.0) / 2 - .8 = .3; the oracle takes 4 for the easy: (.6 + .2) / 2 = .4.
    found = regret_in(constants["fixed:4"], constants, cost_per_nfe)
    assert found.best_constant == "fixed:8"
    assert found.constant_utility == pytest.approx(0.3)
    assert found.oracle_utility == pytest.approx(0.4)
    assert found.oracle_nfe == 6
    assert found.to_constant == pytest.approx(0.3 - (0.0 - 0.4))
    wise = [constants["fixed:4" if n % 2 == 0 else "fixed:8"][n] for n in range(10)]
    assert regret_in(wise, constants, cost_per_nfe).to_oracle == pytest.approx(0.0)
    assert regret_in(wise, constants, cost_per_nfe).to_constant < 0
    assert regret_in(wise, {}, cost_per_nfe) is None


def test_nothing_to_judge_is_refused():
    with pytest.raises(ConfigError, match="without records"):
        behaviour([])

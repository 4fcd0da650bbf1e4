"""Policies against rules, and a calibrator against a judge, on planted truths."""

import numpy as np
import pytest

from addiffusion_env.tabular.outcomes import Outcomes
from addiffusion_env.tabular.rules import Rule, RuleOutcomes
from addiffusion_lab.claims.against_rules import Study, branches, compare
from addiffusion_lab.claims.calibration import agreement

PROMPTS = 4000


def outcomes(share, nfe, rng, actions=((1, 1),)):
    """Correct on ``share`` of the prompts at a mean of ``nfe``."""
    correct = (rng.random(PROMPTS) < share).astype(float)
    spent = nfe + rng.normal(0, 0.2, PROMPTS)
    taken = tuple(actions[n % len(actions)] for n in range(PROMPTS))
    zero = np.zeros(PROMPTS)
    return Outcomes(spent, zero, zero, zero + 1, zero, zero, correct, taken, np.zeros((PROMPTS, 2), int))


def study(gain, rng):
    """Rules on .5 at 1.5 NFE to .7 at 4.5; the policy ``gain`` above the line between them."""
    rules = [
        RuleOutcomes(Rule(0.0, n, n), outcomes(0.4 + 0.2 * n / 2, 1.5 * n, rng), np.zeros(PROMPTS)) for n in (1, 2, 3)
    ]
    played = [outcomes(0.5 + gain + 0.0667 * (nfe - 1.5), nfe, rng) for nfe in (4.2, 3.0, 1.6)]
    return Study({"run": played}, {"run": np.array([0.0, 0.1, 0.2])}, rules, None)


def test_a_planted_gain_is_found_and_none_is_not():
    rng = np.random.default_rng(5)
    found = compare(study(0.15, rng), "run", rng)
    assert set(found) == {1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0}  # 5 NFE are out of the policy's reach
    for at, gain in found.items():
        assert gain.cost == pytest.approx(at, abs=0.03)
        assert gain.gain.low > 0.05 and gain.gain.estimate == pytest.approx(0.15, abs=0.04)
    none = compare(study(0.0, rng), "run", rng)
    assert all(gain.gain.low < 0 < gain.gain.high for gain in none.values())


def test_branches_are_in_words_and_add_up():
    table = branches(outcomes(0.8, 2.0, np.random.default_rng(0), ((1, 1), (1, 1), (1, 2, 0, 1), (0, 1))))
    told = {row[0]: row[1] for row in table.rows}
    assert told == {
        "early exit, accept": "50.0%",
        "early exit, resample, whole attempt, accept": "25.0%",
        "whole attempt, accept": "25.0%",
    }


def test_calibration_of_known_probabilities():
    """Verdicts drawn with the stated probability are calibrated; their order says nothing within a prompt."""
    rng = np.random.default_rng(1)
    said = np.repeat(rng.uniform(0.05, 0.99, 2000)[:, None], 4, axis=1)
    found = agreement("here", said, (rng.random(said.shape) < said).astype(float))
    assert found.images == 8000 and found.within == 0.5
    assert found.brier == pytest.approx(float((said * (1 - said)).mean()), abs=0.01)
    assert found.auc == pytest.approx(0.83, abs=0.02)
    for low, high, number, mean, right in found.bins:
        assert low <= mean <= high and abs(mean - right) < 4 * np.sqrt(0.25 / number)
    perfect = agreement("here", np.array([[0.9, 0.1], [0.2, 0.7]]), np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert perfect.auc == perfect.within == 1.0

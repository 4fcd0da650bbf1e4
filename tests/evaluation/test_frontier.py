"""The frontier of constant samplers, and gains over it."""

import numpy as np
import pytest
from eval_records import record

from addiffusion_env.errors import UnknownNameError
from addiffusion_env.evaluation.frontier import gain_over, upper_hull
from addiffusion_env.evaluation.tables import column, common, measure, paired, per_prompt


def constants(count=400, seeds=(0,)):
    """Fixed 4, 6, 8: correct with .5, .6 and .9; 6 lies under the line between its neighbours."""
    draw = np.random.default_rng(0).random((count, 3))
    return {
        f"fixed:{nfe}": [
            record(f"fixed:{nfe}", prompt, seed, nfe=nfe, correct=bool(draw[prompt, k] < p))
            for prompt in range(count)
            for seed in seeds
        ]
        for k, (nfe, p) in enumerate(((4, 0.5), (6, 0.6), (8, 0.9)))
    }


def test_the_hull_leaves_out_what_a_mixture_beats():
    assert upper_hull(np.array([4.0, 6.0, 8.0]), np.array([0.5, 0.6, 0.9])).tolist() == [0, 2]
    assert upper_hull(np.array([8.0, 4.0, 6.0]), np.array([0.9, 0.5, 0.8])).tolist() == [1, 2, 0]
    assert upper_hull(np.array([4.0, 4.0]), np.array([0.5, 0.7])).tolist() == [1]


def test_a_mixture_of_constants_gains_nothing():
    fixed = constants()
    mixed = [
        record("mix", n, nfe=source.nfe, correct=source.correct)
        for n in range(400)
        for source in [fixed["fixed:4" if n % 2 else "fixed:8"][n]]
    ]
    found = gain_over(mixed, fixed, "correct", np.random.default_rng(1))
    assert found.cost == 6
    assert found.between == ("fixed:4", "fixed:8")
    assert found.gain.low < 0 < found.gain.high
    assert found.reached


def test_a_planted_gain_is_found_and_a_costly_sampler_is_held_against_the_best():
    fixed = constants()
    better = [record("good", n, nfe=6, correct=n % 20 != 0) for n in range(400)]  # .95 at the cost of 6
    found = gain_over(better, fixed, "correct", np.random.default_rng(1))
    assert found.gain.low > 0.15
    assert found.gain.estimate == pytest.approx(0.95 - found.frontier)
    costly = [record("good", n, nfe=30, correct=True) for n in range(400)]
    beyond = gain_over(costly, fixed, "correct", np.random.default_rng(1))
    assert not beyond.reached
    assert beyond.between == ("fixed:8", "fixed:8")
    assert gain_over(better, {}, "correct", np.random.default_rng(1)) is None
    by_seconds = gain_over(better, fixed, "correct", np.random.default_rng(1), cost="seconds")
    assert by_seconds.cost == pytest.approx(0.6)


def test_without_a_difference_there_is_a_gain_that_is_not_ruled_out():
    """On 20 prompts without one, .16 may be there (z^2 / (n + z^2)); a bootstrap would say [0, 0]."""
    fixed = {"fixed:4": [record("fixed:4", n, nfe=4, correct=n % 4 > 0) for n in range(20)]}
    same = [record("mine", n, nfe=4, correct=n % 4 > 0) for n in range(20)]
    found = gain_over(same, fixed, "correct", np.random.default_rng(1))
    assert (found.gain.estimate, found.p) == (0, 1)
    assert (found.gain.low, found.gain.high, found.most) == pytest.approx((-0.1611, 0.1611, 0.1611), abs=1e-4)
    assert not found.below
    cheaper = [record("mine", n, nfe=3, correct=n % 4 > 0) for n in range(20)]
    assert gain_over(cheaper, fixed, "correct", np.random.default_rng(1)).below


def test_the_prompt_is_the_unit_and_pairs_are_shared():
    first = [record("a", 0, 0, nfe=4), record("a", 0, 1, nfe=6), record("a", 1, 0, nfe=9), record("a", 2, 0, nfe=1)]
    second = [record("b", 0, 1, nfe=5), record("b", 1, 0, nfe=7)]
    assert per_prompt(first, "nfe") == {"p0000": 5.0, "p0001": 9.0, "p0002": 1.0}
    one, two = paired(first, second, "nfe")
    assert (one.tolist(), two.tolist()) == ([6.0, 9.0], [5.0, 7.0])
    assert [len(group) for group in common([first, second])] == [2, 2]
    # An image whose verdict is unknown for one sampler is left out for both.
    half = [record("a", 0, 0, correct=None), record("a", 0, 1, correct=True), record("a", 1, correct=True)]
    whole = [record("b", 0, 0, correct=False), record("b", 0, 1, correct=True), record("b", 1, correct=None)]
    one, two = paired(half, whole, "correct")
    assert (one.tolist(), two.tolist()) == ([1.0], [1.0])
    unknown = [record(correct=None), record(prompt=1, correct=False)]
    assert column(unknown, "correct").tolist() == [0.0]
    assert measure(record(extra={"hps": 0.3}), "hps") == 0.3
    with pytest.raises(UnknownNameError, match="did you mean 'correct'"):
        measure(record(), "corect")

"""Statistics against closed forms, and planted effects: power and false alarms by simulation."""

import numpy as np
import pytest
from eval_records import record
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation import statistics as st
from addiffusion_env.evaluation.summary import pair_rows
from addiffusion_lab.claims.statistics import prompts_for_non_inferiority


def rng(seed=0):
    return np.random.default_rng(seed)


def test_bootstrap_agrees_with_students_interval_on_a_large_normal_sample():
    values = rng().normal(0.3, 1.0, 800)
    found, exact = st.mean_interval(values, rng(1)), st.t_interval(values, 0.95)
    assert found.estimate == pytest.approx(values.mean())
    assert found.low == pytest.approx(exact.low, abs=0.005)
    assert found.high == pytest.approx(exact.high, abs=0.005)
    assert found == st.mean_interval(values, rng(1))


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    draws = [rng(seed).binomial(1, 0.8, 120).astype(float) - 0.8 for seed in range(150)]
    covered = [found.low <= 0 <= found.high for x in draws if (found := st.mean_interval(x, rng(9), resamples=600))]
    assert 0.89 <= np.mean(covered) <= 0.99  # .95, three standard deviations either way


def test_equal_values_have_an_interval_without_width_but_a_share_does_not():
    same = np.ones(20)
    assert st.mean_interval(same, rng()).low == 1.0
    share = st.share_interval(same)
    assert share.high == pytest.approx(1.0)
    assert share.low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)  # Wilson at the edge
    assert st.share_interval(np.array([0.5, 1.0, 0.0])).n == 3
    for right in (0, 1, 7, 33):
        found, exact = st.share_interval(np.arange(33) < right), proportion_confint(right, 33, method="wilson")
        assert (found.low, found.high) == pytest.approx(exact, abs=1e-9)


def test_shares_over_seeds_cover_the_truth_where_a_bootstrap_does_not():
    """Almost all images are correct, four of each prompt: most samples have hardly a wrong one to resample."""
    draws = [rng(seed).binomial(4, rng(seed).beta(2.94, 0.06, 40)) / 4 for seed in range(300)]
    covered = [found.low <= 0.98 <= found.high for x in draws if (found := st.share_interval(x))]
    assert np.mean(covered) >= 0.92
    resampled = [found.low <= 0.98 <= found.high for x in draws if (found := st.mean_interval(x, rng(), resamples=300))]
    assert np.mean(resampled) < 0.88


def test_pairing_removes_what_prompts_share():
    hard = rng().normal(0, 5, 200)
    first, second = hard + 0.1 + rng(1).normal(0, 0.05, 200), hard
    found = st.mean_interval(st.differences(first, second), rng(2))
    assert found.low > 0.08
    assert found.high < 0.12


def test_verdicts_that_do_not_differ_may_differ_on_other_prompts():
    right = np.ones(20)
    found = st.paired_share_interval(right, right)
    assert (found.low, found.high) == pytest.approx((-0.1611, 0.1611), abs=1e-4)  # z^2 / (n + z^2)
    scores = rng().normal(0.25, 0.01, (2, 30))  # of a scorer, in [0, 1] and no shares
    assert st.shares(right, right)
    assert not st.shares(*scores)
    found = st.paired_share_interval(np.full(9, 1 / 3), np.full(9, 2 / 3))  # averages that are nowhere 0, 1 or equal
    assert found.estimate == pytest.approx(-1 / 3)


def test_only_verdicts_are_compared_as_shares():
    """The NFE of a sampler that takes half an evaluation are in [0, 1] too, and their difference is exact."""
    mine = [record("policy:x", n, nfe=0.5, correct=True) for n in range(20)]
    other = [record("fixed:1", n, nfe=1.0, correct=True) for n in range(20)]
    (row,) = pair_rows("policy:x", {"policy:x": mine, "fixed:1": other}, "correct")
    assert (row.nfe.estimate, row.nfe.low, row.nfe.high) == (-0.5, -0.5, -0.5)
    assert (row.quality.low, row.quality.high) == pytest.approx((-0.1611, 0.1611), abs=1e-4)


def test_wilcoxon_counts_ties_as_pratt_does():
    first, second = np.zeros(40), np.zeros(40)
    assert st.wilcoxon(first, second).p == 1.0
    first[:6] = [0.1 + 0.2, 0.3, 0.3, 0.3, 0.3, 0.3]  # equal but for rounding
    found = st.wilcoxon(first, second)
    # Six equal positive differences over 34 zeros: ranks 35..40 in Pratt's count.
    ranks = np.full(6, 37.5)
    z = (ranks.sum() - ranks.sum() / 2) / np.sqrt((ranks**2).sum() / 4)
    assert found.p == pytest.approx(2 * scipy_stats.norm.sf(z), rel=0.15)


def test_holm_against_its_definition():
    found = st.holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert found["a"].adjusted == pytest.approx(0.03)
    assert found["b"].adjusted == found["c"].adjusted == pytest.approx(0.06)
    assert [found[name].rejected for name in "abc"] == [True, False, False]
    assert st.holm({}) == {}
    p = rng(0).uniform(0, 0.05, 9)
    rejected, adjusted, *_ = multipletests(p, method="holm")
    found = st.holm(dict(zip("abcdefghi", p, strict=True))).values()
    assert [row.rejected for row in found] == list(rejected) and 0 < sum(rejected) < 9
    assert [row.adjusted for row in found] == pytest.approx(list(adjusted), rel=1e-12)


def test_margins_are_decided_by_the_interval():

    for shift in (-0.03, -0.012, 0.0, 0.03):
        first, second = rng(3).normal(shift, 0.1, 200), np.zeros(200)
        lower = st.non_inferior(first, second, 0.02)
        assert lower.holds == (lower.difference.low > -0.02)
        assert lower.difference.level == pytest.approx(0.9)
    # No difference in 5 prompts does not rule out one in a hundred; none in 400 does.
    assert not st.non_inferior(np.ones(5), np.ones(5), 0.01).holds
    assert st.non_inferior(np.ones(400), np.ones(400), 0.01).holds
    assert not st.non_inferior(np.zeros(5), np.ones(5), 0.01).holds


def test_non_inferiority_has_its_power_and_its_false_alarms():
    margin, spread, runs = 0.02, 0.3, 400
    n = prompts_for_non_inferiority(spread, margin)
    assert n == 1392
    same = sum(st.non_inferior(rng(s).normal(0, spread, n), np.zeros(n), margin).holds for s in range(runs))
    edge = sum(st.non_inferior(rng(s).normal(-margin, spread, n), np.zeros(n), margin).holds for s in range(runs))
    assert 0.74 <= same / runs <= 0.86  # planned power .8
    assert edge / runs <= 0.085  # alpha .05 at the border of the null hypothesis, three standard deviations


def test_a_family_of_null_tests_raises_few_alarms():
    alarms = 0
    for seed in range(150):
        draw = rng(seed)
        tests = {str(k): st.wilcoxon(draw.normal(0, 1, 60), np.zeros(60)).p for k in range(5)}
        alarms += any(entry.rejected for entry in st.holm(tests).values())
    assert alarms / 150 <= 0.105


def test_spearman_agrees_with_scipy_and_finds_what_is_planted():
    constraints = np.tile([1.0, 2.0, 3.0, 4.0], 60)
    noise = rng().normal(0, 1, 240)
    found = st.spearman(constraints, constraints + 2 * noise, rng(1))
    assert found.statistic == pytest.approx(scipy_stats.spearmanr(constraints, constraints + 2 * noise).statistic)
    assert found.p < 0.001
    control = st.spearman(rng(2).permutation(constraints), constraints + 2 * noise, rng(3))
    assert control.p > 0.01
    assert st.spearman(np.ones(10), np.arange(10.0), rng()).p == 1.0


def test_spearmans_false_alarms():
    alarms = sum(
        st.spearman(rng(s).integers(1, 5, 60).astype(float), rng(s + 999).normal(size=60), rng(5), 199).p < 0.05
        for s in range(200)
    )
    assert alarms / 200 <= 0.1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: st.mean_interval(np.array([]), rng()), "need 1 or more prompts"),
        (lambda: st.mean_interval(np.array([1.0, np.nan]), rng()), "1 of 2 values are not finite"),
        (lambda: st.wilcoxon(np.ones(3), np.ones(4)), "got 3 and 4"),
        (lambda: st.non_inferior(np.ones(3), np.ones(3), 0.0), "margin must be above 0"),
        (lambda: st.t_interval(np.ones(1), 0.9), "need 2 or more"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()

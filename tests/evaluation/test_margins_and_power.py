"""Paired shares, rank gaps and numbers of prompts."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation import statistics as st
from addiffusion_env.evaluation.tango import effective_counts
from addiffusion_lab.claims import statistics as claims


def rng(seed=0):
    return np.random.default_rng(seed)


def verdicts(both, first_only, second_only, neither):
    """Paired verdicts with these counts."""
    counts = [both, first_only, second_only, neither]
    return np.repeat([1.0, 1.0, 0.0, 0.0], counts), np.repeat([1.0, 0.0, 1.0, 0.0], counts)


def test_tangos_test_and_interval_as_published():
    """Tango 1998, section 5: 44 lenses, 43 both, one only with the old sampler; margin .1: z 1.709, p .044."""
    first, second = verdicts(43, 0, 1, 0)
    found = st.non_inferior(first, second, 0.1)
    assert st.paired_share_score(0, 1, 44, -0.1) == pytest.approx(1.709, abs=5e-4)
    assert found.p == pytest.approx(0.0437, abs=5e-4)
    assert found.holds
    interval = st.paired_share_interval(first, second, 0.95)
    for bound in (interval.low, interval.high):
        assert abs(st.paired_share_score(0, 1, 44, bound)) == pytest.approx(1.959964, abs=1e-4)
    assert interval.estimate == pytest.approx(-1 / 44)
    assert interval.low < -1 / 44 < interval.high


@pytest.mark.parametrize("counts", [(0, 0, 9, 0), (0, 9, 0, 0), (9, 0, 0, 0), (3, 2, 4, 5), (400, 30, 20, 50)])
def test_a_share_interval_and_its_test_agree(counts):
    first, second = verdicts(*counts)
    interval = st.paired_share_interval(first, second, 0.9)
    assert -1 <= interval.low <= interval.estimate <= interval.high <= 1
    for margin in (0.02, 0.1, 0.3):
        found = st.non_inferior(first, second, margin)
        assert found.holds == (interval.low > -margin)
    mirrored = st.paired_share_interval(second, first, 0.9)
    assert (mirrored.low, mirrored.high) == (pytest.approx(-interval.high), pytest.approx(-interval.low))


def test_the_share_interval_covers_the_truth():
    covered = 0
    for seed in range(400):
        place = rng(seed).random(60)
        first, second = (place < 0.9).astype(float), ((place < 0.8) | (place > 0.95)).astype(float)
        found = st.paired_share_interval(first, second)  # truth .9 - .85
        covered += found.low <= 0.05 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize(("prompts", "first_only", "margin"), [(60, 0.0, 0.05), (64, 0.02, 0.05), (124, 0.05, 0.1)])
def test_the_share_test_keeps_its_level_where_a_t_test_does_not(prompts, first_only, margin):
    """Exact, over all tables: the truth is worse by the margin, so every rejection is a false alarm."""
    second_only = first_only + margin
    alarms = t_alarms = 0.0
    binom = scipy_stats.binom
    for b, first in enumerate(binom.pmf(np.arange(16), prompts, first_only)):
        rest = binom.pmf(np.arange(prompts - b + 1), prompts - b, second_only / (1 - first_only))
        for c, chance in enumerate(first * rest):
            if chance > 1e-9:
                alarms += chance * (st.paired_share_score(b, c, prompts, -margin) > 1.644854)
                mean = (b - c) / prompts
                error = np.sqrt(((b + c) / prompts - mean**2) / (prompts - 1))
                t_alarms += chance * (mean + margin > 1.644854 * error)
    assert alarms <= 0.0501
    assert t_alarms > 0.0501


def test_no_difference_between_averaged_shares_is_no_proof_either():
    same = np.full(20, 0.5)
    assert not st.non_inferior(same, same, 0.05).holds  # .95^20 = .36
    exact = scipy_stats.norm.sf(np.sqrt(60 * 0.05 / 0.95))  # Tango's score without a discordant prompt
    assert st.non_inferior(np.full(60, 0.5), np.full(60, 0.5), 0.05).p == pytest.approx(exact)
    with pytest.raises(ConfigError, match="score interval needs shares"):
        st.paired_share_interval(same, same + 1)


@pytest.mark.parametrize(("prompts", "sizes", "rates"), [(64, (0.25, 1), (0.8, 0.2)), (192, (0.5,), (1.0,))])
def test_averages_over_seeds_keep_the_level_of_a_margin_where_a_t_test_does_not(prompts, sizes, rates):
    """The first is worse by exactly .02: on few prompts, by a quarter or all of the seeds of each."""
    chances = 0.02 * np.array(rates) / np.dot(rates, sizes)
    alarms = t_alarms = 0
    for seed in range(600):
        lost = rng(seed).choice([*sizes, 0.0], prompts, p=[*chances, 1 - chances.sum()])
        second = np.where(lost > 0, 1.0, np.repeat([0.0, 1.0], prompts // 2))
        alarms += st.non_inferior(second - lost, second, 0.02).holds
        t_alarms += bool(lost.any()) and scipy_stats.ttest_1samp(-lost, -0.02, alternative="greater").pvalue < 0.05
    assert alarms / 600 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)
    assert t_alarms / 600 > 0.1


def test_differences_of_other_sizes_are_counted_in_their_own_unit():
    verdicts = np.repeat([1.0, 0.0, -1.0], [9, 30, 4])
    assert effective_counts(verdicts) == (9, 4, 1)
    halves = effective_counts(verdicts[verdicts != 0] / 2)
    assert halves == (9, 4, 0.5)
    assert effective_counts(np.zeros(5), 0.3) == (0, 0, 0.3)
    mixed = rng(3).choice([-1.0, -0.25, 0.0, 0.5], 500)
    above, below, unit = effective_counts(mixed, 0.0)
    assert unit * (above - below) == pytest.approx(mixed.sum())
    assert unit**2 * (above + below) == pytest.approx((mixed**2).sum())
    assert st.score_interval(mixed).low == pytest.approx(st.t_interval(mixed, 0.95).low, abs=0.002)


def test_a_mean_below_a_limit():
    assert claims.at_most(np.full(10, 7.0), 7.0).holds  # known, and on the limit
    assert not claims.at_most(np.full(10, 7.1), 7.0).holds
    spent = rng().normal(6, 1, 50)
    exact = scipy_stats.ttest_1samp(spent, 7.0, alternative="less").pvalue
    assert claims.at_most(spent, 7.0).p == pytest.approx(exact)


@pytest.mark.parametrize(("prompts", "t_test"), [(64, 0.07), (192, 0.055)])
def test_a_mean_of_few_dear_images_is_rarely_found_below_itself(prompts, t_test):
    """NFE as the shipped policy spends them: three quarters of the images cost 1.5, one in twenty-seven costs 9."""
    spent, share = np.array([1.5, 3.0, 4.5, 6.0, 7.5, 9.0]), np.array([0.741, 0.134, 0.051, 0.022, 0.015, 0.037])
    mean = float(spent @ share)
    alarms = t_alarms = 0
    for seed in range(1500):
        drawn = rng(seed).choice(spent, prompts, p=share)
        found = claims.at_most(drawn, mean)
        alarms += found.holds
        t_alarms += scipy_stats.ttest_1samp(drawn, mean, alternative="less").pvalue < 0.05
        assert found.holds == (found.difference.high < mean)
    assert alarms / 1500 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1500)
    assert t_alarms / 1500 > t_test


def test_resampled_weights_are_those_of_a_bootstrap():
    weights = st.resampled(30, rng(), 4000)
    assert weights.sum(1) == pytest.approx(1.0)
    assert weights.mean() == pytest.approx(1 / 30)
    assert (weights * 30).var() == pytest.approx(1 - 1 / 30, abs=0.02)


def test_every_resample_is_ranked_again():
    x, y = rng(1).integers(0, 4, 25).astype(float), rng(2).normal(size=25)
    found = claims.spearman_interval(x, y, rng(3), resamples=99)
    draws = [scipy_stats.spearmanr(x[drawn], y[drawn]).statistic for drawn in rng(3).integers(0, 25, (99, 25))]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert claims.spearman_interval(x, y, rng()).estimate == pytest.approx(scipy_stats.spearmanr(x, y).statistic)
    assert claims.spearman_interval(np.ones(25), y, rng()).high == 0.0


def test_the_gap_of_two_rank_correlations():
    constraints = np.tile([1.0, 2.0, 3.0, 4.0], 50)
    follows, control = constraints + rng(1).normal(0, 1, 200), rng(2).normal(0, 1, 200)
    gap, p = claims.rank_correlation_gap(follows, constraints, control, rng(3))
    own = scipy_stats.spearmanr(follows, constraints).statistic - scipy_stats.spearmanr(control, constraints).statistic
    assert gap.estimate == pytest.approx(own)
    assert gap.low > 0.3
    assert p < 0.01
    assert claims.rank_correlation_gap(follows, constraints, follows, rng(3))[1] == 1.0


def test_sizes_give_the_power_they_promise():
    runs = 500

    def share_of(hits):
        return sum(hits) / runs

    n = claims.prompts_for_difference(1.0, 0.3)
    found = (scipy_stats.ttest_1samp(rng(s).normal(0.3, 1, n), 0.0).pvalue < 0.05 for s in range(runs))
    assert share_of(found) == pytest.approx(0.8, abs=0.06)
    n = claims.prompts_for_non_inferiority(0.3, 0.1)
    found = (st.non_inferior(rng(s).normal(0, 0.3, n), np.zeros(n), 0.1).holds for s in range(runs))
    assert share_of(found) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: claims.prompts_for_difference(0.3, 0.0), "must differ from 0"),
        (lambda: claims.prompts_for_non_inferiority(0.3, 0.02, difference=-0.03), "cannot be shown non-inferior"),
    ],
)
def test_plans_that_cannot_be_made_are_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()

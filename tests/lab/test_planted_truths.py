"""Planted effects are found as often as planned, planted nothing is claimed no more often than stated.

Every rate is that of some hundred simulated evaluations, held against its plan with three binomial standard
deviations. Sizes come from the project's own power formulas, so these are tested with them.
"""

import numpy as np
import planted
import pytest

from addiffusion_env.evaluation.frontier import gain_over
from addiffusion_lab.claims import HYPOTHESES
from addiffusion_lab.claims.statistics import prompts_for_difference, prompts_for_non_inferiority

POWER, MARGIN, GAIN = 0.8, planted.MARGIN.value, 0.1


def slack(rate, runs):
    return 3 * np.sqrt(rate * (1 - rate) / runs)


def outcomes(name, make, runs, **claims):
    """The verdicts of simulated evaluations, as shares; none of them for lack of data."""
    judge = HYPOTHESES.load(name)
    found = [judge(planted.case(make(np.random.default_rng(run)), run, **claims)) for run in range(runs)]
    assert all(verdict.effect is not None for verdict in found)
    words = [verdict.verdict for verdict in found]
    return {word: words.count(word) / runs for word in ("supported", "not supported", "inconclusive")}


@pytest.fixture(scope="module")
def frontier_prompts():
    """Prompts for H2's planted gain: the spread of one prompt's share of it, from a large pilot."""
    pilot = planted.against_frontier(np.random.default_rng(0), 200_000, GAIN)
    (policy, four, eight), nfe = pilot.columns["correct"], pilot.columns["nfe"][0]
    share = policy - (four + eight) / 2 - 0.05 * (nfe - 6)  # the frontier's slope: .2 in 4 NFE
    assert share.mean() == pytest.approx(GAIN, abs=0.005)
    return prompts_for_difference(float(share.std()), GAIN)


def test_h1_finds_equality_as_often_as_planned():
    n = prompts_for_non_inferiority(np.sqrt(0.2), MARGIN)
    found = outcomes("H1", lambda draw: planted.against_reference(draw, n, 0.1, 0.1), 200)
    assert found["supported"] == pytest.approx(POWER, abs=slack(POWER, 200))


def test_h1_hardly_ever_passes_what_is_worse_by_the_margin():
    found = outcomes("H1", lambda draw: planted.against_reference(draw, 124, 0.05, 0.15), 200)
    assert found["supported"] <= 0.05 + slack(0.05, 200)


def test_h1_hardly_ever_passes_what_spends_the_limit():
    found = outcomes("H1", lambda draw: planted.against_reference(draw, 124, 0.2, 0.0, nfe=7.0), 200)
    assert found["supported"] <= 0.05 + slack(0.05, 200)


def test_h1_holds_against_all_its_references_or_not_at_all():
    """On a par with the full schedule, and worse by twice the margin than a reference that resamples."""

    def make(draw):
        found = planted.against_reference(draw, 400, 0.1, 0.1)
        policy, fixed = found.columns["correct"]
        equal = draw.permutation(policy)
        return planted.table(
            {planted.POLICY: policy, "fixed:50": fixed, "best_of:3x50": np.ones(400), "fixed:20": equal},
            {
                planted.POLICY: found.columns["nfe"][0],
                **dict.fromkeys(("fixed:50", "best_of:3x50", "fixed:20"), np.full(400, 50.0)),
            },
        )

    worse = outcomes("H1", make, 40, checked=("fixed:20", "best_of:3x50"))
    assert worse["not supported"] >= 0.95
    same = [HYPOTHESES.load("H1")(planted.case(make(np.random.default_rng(0)), checked=("fixed:50",)))]
    assert same[0].verdict == "supported" and len(same[0].comparisons) == 3


def test_h1_calls_none_of_its_parts_failed_more_often_than_it_says():
    """Worse by the margin than each of six references: with one level for each, 22 % were called worse."""
    others = tuple(f"fixed:{steps}" for steps in range(51, 56))

    def make(draw):
        place, names = draw.random(300), ("fixed:50", *others)
        correct = {planted.POLICY: place < 0.7, **{name: (place < 0.7) | (draw.random(300) < 1 / 3) for name in names}}
        spent = {planted.POLICY: draw.integers(4, 9, 300), **{name: np.full(300, 50.0) for name in names}}
        return planted.table(correct, spent)

    found = outcomes("H1", make, 200, checked=others)
    assert found["not supported"] <= 0.05 + slack(0.05, 200)


def test_h1_says_when_it_is_worse():
    found = outcomes("H1", lambda draw: planted.against_reference(draw, 200, 0.0, 0.3), 50)
    assert found["not supported"] >= 0.98
    spends = outcomes("H1", lambda draw: planted.against_reference(draw, 200, 0.1, 0.1, nfe=8.0), 50)
    assert spends["not supported"] == 1.0


@pytest.mark.slow
def test_h2_finds_a_gain_as_often_as_planned(frontier_prompts):
    found = outcomes("H2", lambda draw: planted.against_frontier(draw, frontier_prompts, GAIN), 400, kinds=("fixed",))
    assert found["supported"] == pytest.approx(POWER, abs=slack(POWER, 400) + 0.02)


@pytest.mark.slow
def test_h2_does_not_take_a_mixture_for_a_policy(frontier_prompts):
    found = outcomes("H2", lambda draw: planted.against_frontier(draw, frontier_prompts, 0.0), 400, kinds=("fixed",))
    assert found["supported"] <= 0.025 + slack(0.025, 400)
    many = outcomes("H2", lambda draw: planted.against_frontier(draw, 3000, 0.0), 60, kinds=("fixed",))
    assert many["not supported"] >= 0.98  # enough prompts rule out a gain of one margin


@pytest.mark.slow
def test_h2_at_a_bend_of_the_frontier():
    """Which side of the bend the policy is on is not known from the data, and must not be chosen by them."""
    none = outcomes("H2", lambda draw: planted.at_a_corner(draw, 300, 0.0), 400, kinds=("fixed",))
    assert none["supported"] <= 0.025 + slack(0.025, 400)
    found = outcomes("H2", lambda draw: planted.at_a_corner(draw, 600, 0.15), 100, kinds=("fixed",))
    assert found["supported"] >= 0.95


def test_h2_does_not_rule_out_a_gain_by_the_wrong_side_of_a_bend():
    found = outcomes("H2", lambda draw: planted.before_the_last(draw, 200, 0.15), 100, kinds=("fixed",))
    assert found["not supported"] <= 0.025 + slack(0.025, 100)


@pytest.mark.parametrize(("prompts", "gain"), [(20, 0.02), (64, 0.01), (192, 0.01)])
def test_h2_does_not_rule_out_a_gain_on_prompts_that_were_not_among_them(prompts, gain):
    """A bootstrap, which knows only the differences that it saw, ruled it out in .67, .49 and .15 of them."""
    limit = planted.margin(gain)
    found = outcomes("H2", lambda draw: planted.seldom(draw, prompts, gain), 100, kinds=("fixed",), limit=limit)
    assert found["not supported"] <= 0.025 + slack(0.025, 100)


@pytest.mark.slow
def test_h2_rules_out_a_gain_at_one_level_for_all_costs():
    """Each of six gains is that of the margin: with one level for each, 17 % of the evaluations ruled out one."""
    claims = {"kinds": ("fixed",), "curve": planted.CURVE, "limit": planted.margin(0.05)}
    found = outcomes("H2", lambda draw: planted.along_a_curve(draw, 200, 0.05), 300, **claims)
    assert found["not supported"] <= 0.025 + slack(0.025, 300)
    worse = outcomes("H2", lambda draw: planted.along_a_curve(draw, 200, -0.15), 40, **claims)
    assert worse["not supported"] >= 0.95


@pytest.mark.slow
def test_h2_rules_out_no_gain_by_the_luckiest_of_many_comparators():
    """The strongest mixture is chosen by the same prompts: its own bound ruled out the gain in 30 % of the samples."""
    claims = {"kinds": ("fixed",), "limit": planted.margin(0.02)}
    found = outcomes("H2", lambda draw: planted.among_many(draw, 200, 0.02), 200, **claims)
    assert found["not supported"] <= 0.025 + slack(0.025, 200)
    worse = outcomes("H2", lambda draw: planted.among_many(draw, 200, -0.15), 40, **claims)
    assert worse["not supported"] >= 0.95


def test_h2_rules_out_nothing_by_a_comparator_that_costs_more():
    def cheaper(draw):
        images = planted.seldom(draw, 200, 0.0)
        images.columns["correct"][0] = draw.random(200) < 0.6
        images.columns["nfe"][0] = 4.0
        return images

    found = outcomes("H2", cheaper, 5, kinds=("fixed",))
    assert found["inconclusive"] == 1
    verdict = HYPOTHESES.load("H2")(planted.case(cheaper(np.random.default_rng(0)), kinds=("fixed",)))
    assert "no comparator was run at 4.00 nfe or below: add a cheaper one" in verdict.reason


@pytest.mark.slow
def test_the_number_of_prompts_of_an_undecided_h2_is_enough():
    claims = {"kinds": ("fixed",), "curve": planted.CURVE, "limit": planted.margin(0.1)}
    judge, rng = HYPOTHESES.load("H2"), np.random.default_rng(1)
    needed = judge(planted.case(planted.along_a_curve(rng, 60, 0.02), **claims)).prompts_needed
    found = outcomes("H2", lambda draw: planted.along_a_curve(draw, needed, 0.1), 100, **claims)
    assert found["supported"] >= POWER - slack(POWER, 100)


@pytest.mark.slow
def test_h2_takes_more_than_beating_three_of_four_kinds():
    """The policy is far above fixed steps, rule and best-of-n, and on a par with threshold-resample."""
    beaten = outcomes("H2", lambda draw: planted.against_frontier(draw, 300, 0.2, retry=0.9), 300)
    assert beaten["supported"] <= 0.025 + slack(0.025, 300)
    ahead = outcomes("H2", lambda draw: planted.against_frontier(draw, 600, 0.2, retry=0.72), 40)
    assert ahead["supported"] >= 0.95


def test_h3_finds_a_correlation_above_its_control_as_often_as_planned():
    n = round(planted.prompts_for_correlation(0.3) * 1.87)  # the control's own scatter comes on top
    found = outcomes("H3", lambda draw: planted.by_constraints(draw, n, 0.31, 0.0), 150, shuffled=planted.CONTROL)
    assert found["supported"] == pytest.approx(POWER, abs=slack(POWER, 150) + 0.02)


# Without any correlation it takes two false alarms to pass, with equal ones a single one.
@pytest.mark.parametrize(("own", "control"), [pytest.param(0.0, 0.0, marks=pytest.mark.slow), (0.4, 0.4)])
def test_h3_hardly_ever_passes_what_shuffled_prompts_do_as_well(own, control):
    found = outcomes("H3", lambda draw: planted.by_constraints(draw, 120, own, control), 150, shuffled=planted.CONTROL)
    assert found["supported"] <= 0.025 + slack(0.025, 150)


def test_h4_finds_a_gain_and_raises_few_alarms():
    claims = {"no_refine": (planted.PLAIN,)}
    pilot = planted.with_refinement(np.random.default_rng(0), 200_000, GAIN)
    plain, eight, refined = pilot.columns["correct"]
    nfe = pilot.columns["nfe"]
    slope = 0.1 / 3
    share = refined - (plain + 2 * eight) / 3 - slope * (nfe[2] - 7) + slope / 3 * (nfe[0] - 5)
    n = prompts_for_difference(float(share.std()), GAIN)
    found = outcomes("H4", lambda draw: planted.with_refinement(draw, n, GAIN), 200, **claims)
    assert found["supported"] == pytest.approx(POWER, abs=slack(POWER, 200) + 0.02)
    none = outcomes("H4", lambda draw: planted.with_refinement(draw, n, 0.0), 200, **claims)
    assert none["supported"] <= 0.025 + slack(0.025, 200)


# ---- the report's own estimator of a gain over constant samplers


def gains(make, runs):
    """Gains of the planted policy over its fixed samplers, one for each simulated evaluation."""
    for run in range(runs):
        found = planted.records(make(np.random.default_rng([run, 1])))  # a stream apart from the resamples'
        own = found.pop(planted.POLICY)
        yield gain_over(own, found, "correct", np.random.default_rng([run, 2]), resamples=499)


@pytest.mark.parametrize("make", [planted.against_frontier, planted.at_a_corner])
def test_a_reported_gain_is_rarely_above_zero_without_one(make):
    above = [found.gain.low > 0 for found in gains(lambda draw: make(draw, 100, 0.0), 150)]
    assert np.mean(above) <= 0.025 + slack(0.025, 150)


def test_the_interval_of_a_reported_gain_holds_the_truth_beside_a_bend():
    found = list(gains(lambda draw: planted.before_the_last(draw, 200, GAIN), 150))
    assert np.mean([result.gain.low <= GAIN <= result.gain.high for result in found]) >= 0.95 - slack(0.95, 150)
    assert np.mean([result.gain.estimate for result in found]) == pytest.approx(GAIN, abs=0.02)


@pytest.mark.slow
def test_a_reported_gain_is_found_and_its_interval_holds_the_truth():
    found = list(gains(lambda draw: planted.against_frontier(draw, 200, GAIN), 150))
    covered = [result.gain.low <= GAIN <= result.gain.high for result in found]
    assert np.mean(covered) >= 0.95 - slack(0.95, 150)
    assert np.mean([result.gain.estimate for result in found]) == pytest.approx(GAIN, abs=0.01)
    # A prompt's share of the gain scatters by .44 (see frontier_prompts), so 200 prompts find .1 with power .9.
    assert np.mean([result.gain.low > 0 for result in found]) == pytest.approx(0.9, abs=slack(0.9, 150) + 0.02)

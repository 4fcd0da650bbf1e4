"""Verdicts from records: each claim, what is refused, what cannot be said, and how it is shown."""

import io
from dataclasses import replace
from functools import lru_cache

import numpy as np
import planted
import pytest
from eval_records import record

from addiffusion_env.errors import ConfigError, UnknownNameError
from addiffusion_env.evaluation.rendering import to_html, to_markdown
from addiffusion_lab.claims import HYPOTHESES
from addiffusion_lab.claims.base import NO_JUDGE, Claims, ImageTable
from addiffusion_lab.claims.conflicts import Use
from addiffusion_lab.claims.render import hypotheses_section, print_verdicts, verdict_table
from addiffusion_lab.claims.setup import decide, deciding

PROMPTS = 160
MARGINS = (planted.margin(0.05),)
SHUFFLED, PLAIN = planted.CONTROL, planted.PLAIN


@lru_cache
def evaluation(share=0.97, follows=True):
    """Records of 160 prompts: the policy correct on ``share`` at 6 NFE in the mean, fixed steps on .6 to .85."""
    draw = np.random.default_rng(1)
    shares = {
        planted.POLICY: share,
        SHUFFLED: 0.7,
        PLAIN: 0.7,
        "fixed:4": 0.6,
        "fixed:8": 0.8,
        "fixed:50": 0.85,
        "prompt_rule:8,4": 0.7,
        "best_of:2x3": 0.7,
        "threshold_resample:0.5": 0.75,
    }
    made = []
    for name, right in shares.items():
        for prompt in range(PROMPTS):
            constraints = 1 + prompt % 4  # as eval_records has it
            nfe = float(name[6:]) if name.startswith("fixed") else 6.0 + float(draw.integers(-1, 2))
            if name == planted.POLICY and follows:
                nfe = 3.5 + constraints + float(draw.integers(0, 2)) - 0.5
            liked, correct = float(draw.normal()), bool(draw.random() < right)
            extra = {"hps": 0.25 + 0.02 * correct + 0.001 * liked}
            made.append(record(name, prompt, nfe=nfe, correct=correct, preference=liked, extra=extra))
    return made


def claims(**changes):
    settings = {
        "policy": planted.POLICY,
        "nfe_limit": 7.0,
        "shuffled": SHUFFLED,
        "no_refine": (PLAIN,),
        "resamples": 999,
    }
    return Claims(**{**settings, **changes})


def verdicts(records, judges=("emoji_detector",), margins=MARGINS, uses=(), **changes):
    names = changes.pop("names", tuple(HYPOTHESES))
    return {v.hypothesis: v for v in deciding(decide(records, claims(**changes), judges, margins, uses, names))}


def test_planted_gains_are_found_in_records():
    found = verdicts(evaluation())
    assert [verdict.verdict for verdict in found.values()] == ["supported"] * 5
    assert list(found) == ["H1", "H2", "H2_seconds", "H3", "H4"]
    assert found["H1"].margin.value == 0.05
    assert found["H1"].effect.level == pytest.approx(0.9)
    assert found["H1"].n == PROMPTS
    assert found["H2"].effect.level == pytest.approx(0.95)
    assert {row.comparator.split(" at ")[0] for row in found["H2"].comparisons} == set(claims().kinds)
    assert found["H2"].p == max(row.holm for row in found["H2"].comparisons) < 0.05
    assert all(row.holm >= row.p for row in found["H2"].comparisons)
    assert found["H3"].judge == NO_JUDGE
    assert found["H3"].effect.estimate > 0.7
    # A rule based on the prompt alone is reported outside the family.
    assert np.isnan(found["H3"].comparisons[-1].holm)
    assert "prompt_rule:8,4" in found["H3"].comparisons[-1].comparator


def test_a_bad_policy_is_not_supported_and_a_fair_one_inconclusive():
    bad = verdicts(evaluation(share=0.4, follows=False))
    assert {bad[name].verdict for name in ("H1", "H2", "H4")} == {"not supported"}
    assert bad["H3"].verdict in ("not supported", "inconclusive")
    assert "worse than fixed:50" in bad["H1"].reason
    fair = verdicts(evaluation(share=0.8), names=("H1",))["H1"]
    assert fair.verdict == "inconclusive"
    assert fair.prompts_needed > PROMPTS
    assert "with power .8 against fixed:50 if there were no difference" in verdict_table([fair]).rows[0][-1]


@pytest.mark.slow
def test_the_same_records_give_the_same_verdicts_whichever_are_asked_for():
    records = evaluation(share=0.8)
    every, one = verdicts(records), verdicts(records[::-1], names=("H2",))
    assert one["H2"] == every["H2"]


@pytest.mark.slow
def test_a_scorer_of_the_reward_may_not_decide_alone():
    uses = [
        Use("emoji_preference", planted.POLICY, "its reward term terminal_bonus pays by it"),
        Use("emoji_preference", "threshold_resample:0.5", "it keeps the attempt with the best such score"),
    ]
    with pytest.raises(ConfigError) as caught:
        verdicts(evaluation(), judges=("preference",), uses=uses)
    assert "reward term terminal_bonus" in caught.value.cause
    assert "threshold_resample:0.5" in caught.value.cause
    assert "judges=[emoji_detector]" in caught.value.remedy
    both = decide(evaluation(), claims(), ("preference", "emoji_detector", "hps"), MARGINS, uses)
    assert {v.judge for v in deciding(both)} == {"correct", NO_JUDGE}  # the first that is independent
    beside = {v.judge: v for v in both if v.hypothesis == "H2" and not v.decides}
    assert not beside["preference"].independent
    assert "preference cannot decide" in beside["preference"].reason
    assert beside["hps"].independent


@pytest.mark.slow
def test_a_margin_that_came_after_the_records_supports_nothing():
    late = verdicts(evaluation(), margins=(planted.margin(0.05, records_before=40),))["H1"]
    assert late.verdict == "inconclusive"
    assert "set after 40 records" in late.reason
    none = verdicts(evaluation(), margins=())["H1"]
    assert "no margin was set for correct" in none.reason
    assert none.effect is None


@pytest.mark.parametrize(
    ("name", "gone", "words"),
    [
        ("H1", "fixed:50", "no records of fixed:50"),
        ("H2", "best_of:2x3", "no sampler of kind 'best_of'"),
        ("H3", SHUFFLED, f"no records of {SHUFFLED}"),
        ("H4", PLAIN, f"no records of {PLAIN}"),
    ],
)
def test_without_its_comparator_a_claim_is_inconclusive(name, gone, words):
    left = [item for item in evaluation() if item.sampler != gone]
    found = verdicts(left, names=(name,))[name]
    assert found.verdict == "inconclusive"
    assert words in found.reason


def test_what_no_comparator_reaches_is_not_claimed():
    cheap = [item for item in evaluation() if item.sampler not in ("fixed:8", "fixed:50")]
    found = verdicts(cheap, names=("H4",))["H4"]  # without refinement it spends 6, as does the policy: reached
    assert all(row.reached for row in found.comparisons)
    costly = [
        record(r.sampler, int(r.prompt_id[1:]), nfe=20.0, correct=r.correct) if r.sampler == planted.POLICY else r
        for r in cheap
    ]
    found = verdicts(costly, names=("H4",))["H4"]
    assert found.verdict == "inconclusive"
    assert "add a more expensive one" in found.reason


def test_nothing_follows_constraints_that_are_all_the_same():
    """A user's prompts come without constraints: a correlation of +0.000 would rule out an untested claim."""
    same = [replace(item, constraints=0) for item in evaluation()]
    found = verdicts(same, names=("H3",))["H3"]
    assert (found.verdict, found.effect, found.n) == ("inconclusive", None, PROMPTS)
    assert found.reason == f"all {PROMPTS} prompts have the same number of constraints, 0"


def test_a_policy_that_spent_the_same_on_all_prompts_may_not_on_others():
    """Spending more on one prompt in thirty is a correlation of .2 or more, of which 20 prompts often show nothing."""
    constraints, same = np.arange(20) % 4 + 1.0, np.full(20, 1.5)
    images = planted.table({}, {planted.POLICY: same, SHUFFLED: same + constraints}, constraints)
    found = HYPOTHESES.load("H3")(planted.case(images, shuffled=SHUFFLED))
    assert (found.verdict, found.reason) == ("inconclusive", "all 20 prompts took 1.5 NFE")


def test_the_effect_and_p_of_h3_are_those_that_decide():
    """Shuffled prompts have a higher correlation: the small p of the difference is no evidence for the claim."""
    draw, constraints = np.random.default_rng(0), np.arange(200) % 4 + 1.0
    own, control = (share * constraints + draw.normal(size=200) for share in (0.3, 1.0))
    images = planted.table({}, {planted.POLICY: own, SHUFFLED: control}, constraints)
    found = HYPOTHESES.load("H3")(planted.case(images, shuffled=SHUFFLED))
    assert found.verdict == "not supported"
    assert found.comparator == f"the correlation of {SHUFFLED}"
    assert found.effect.high < 0
    assert found.comparisons[1].p < 0.05
    assert found.p == 1
    assert "one of 0.1 above that of shuffled prompts is ruled out" in found.reason


def test_few_prompts_decide_nothing():
    few = [item for item in evaluation() if item.prompt_id < "p0015"]
    found = verdicts(few)
    assert {verdict.verdict for verdict in found.values()} == {"inconclusive"}
    assert "15 prompts" in found["H1"].reason


def test_a_curve_is_compared_at_each_of_its_costs():
    dear = "policy:emoji@0.001"
    more = [record(dear, n, nfe=10.0, correct=n % 20 != 0) for n in range(PROMPTS)]
    own = verdicts(evaluation() + more, curve=(dear,), names=("H2",))["H2"]
    assert {round(row.cost, 1) for row in own.comparisons} == {6.0, 10.0}
    gone = verdicts(evaluation(), curve=(dear,), names=("H2",))["H2"]
    assert f"no records of {dear}" in gone.reason


def test_images_are_joined_by_prompt_and_seed_and_averaged_by_prompt():
    records = [
        record("a", 0, 0, nfe=4, correct=True),
        record("a", 0, 1, nfe=6, correct=False),
        record("a", 0, 2, nfe=90, correct=True),
        record("a", 1, 0, nfe=9, correct=None),
        record("a", 2, 0, nfe=1, correct=True, extra={"hps": 0.2}),
        record("b", 0, 1, nfe=5, correct=True),
        record("b", 0, 0, nfe=7, correct=True),
        record("b", 1, 0, nfe=7, correct=True),
        record("b", 2, 0, nfe=2, correct=True),
    ]
    table = ImageTable.of(records, ("correct", "nfe", "hps"))
    both = table.means(("b", "a"), ("correct", "nfe"))
    assert both.values["nfe"].tolist() == [[6.0, 2.0], [5.0, 1.0]]
    assert both.values["correct"].tolist() == [[1.0, 1.0], [0.5, 1.0]]
    assert [table.prompt_ids[n] for n in both.prompts] == ["p0000", "p0002"]
    assert len(table.means(("a", "b"), ("nfe",))) == 3
    assert len(table.means(("a", "b"), ("hps",))) == 0
    with pytest.raises(UnknownNameError, match="unknown sampler 'c'"):
        table.means(("c",), ("nfe",))
    with pytest.raises(UnknownNameError, match="unknown measure 'hpsv2'"):
        ImageTable.of(records, ("hpsv2",))
    with pytest.raises(ConfigError, match="no records"):
        ImageTable.of([], ("nfe",))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha": 0.5}, "alpha must lie"),
        ({"nfe_limit": 0.0}, "nfe_limit must be above 0"),
        ({"resamples": 10}, "at least 99"),
        ({"least_prompts": 1}, "at least 2"),
    ],
)
def test_bad_claims_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        claims(**changes)


@pytest.mark.slow
def test_verdicts_are_printed_and_written():
    from rich.console import Console

    uses = [Use("emoji_preference", planted.POLICY, "its reward term terminal_bonus pays by it")]
    found = decide(evaluation(), claims(), ("emoji_detector", "preference"), MARGINS, uses)
    console = Console(file=io.StringIO(), width=160)
    print_verdicts(found, console)
    printed = console.file.getvalue()
    assert printed.count("supported") >= 5
    assert "Margin: 0.05 in correct, in evaluation.json since 2026-11-01" in printed
    assert "preference" not in printed.split("H1:")[0]  # judges that do not decide are left to the report
    section = hypotheses_section(found)
    page, text = to_html("t", [section], {}), to_markdown("t", [section])
    for document in (page, text):
        assert "Other judges, which do not decide" in document
        assert "before any record" in document
    assert "<script" not in page
    assert len(verdict_table(found).rows) == len(found)
    empty = decide(evaluation()[:PROMPTS], claims(), ("correct",), (), ())
    assert verdict_table(empty).rows[0][2:5] == ("-", "-", "0")

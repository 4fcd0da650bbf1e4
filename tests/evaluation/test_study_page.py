"""The study's page: each method once a table, seconds that say how they were made, plots that can be read."""

import re
from pathlib import Path

import numpy as np
import pytest
from legible import assert_legible

from addiffusion_env.evaluation.films import with_words
from addiffusion_lab.study import page
from addiffusion_lab.study.arms import Arm, Clock, distinct

ROOT = Path(__file__).parents[2]
CLOCK = Clock(call=30.0, look=20.0, decode=33.0, score=10.0)
FAMILIES = (
    "policy",
    "fixed DDIM",
    "prompt rule",
    "best of n",
    "threshold-retry",
    "threshold-retry by liking",
    "threshold-retry by belief",
    "retry by liking on the policy's own process",
    "retry by belief on the policy's own process",
)


def arm(name, nfe, share, prompts=100):
    one = np.ones(prompts)
    right = np.arange(prompts) < share * prompts
    return Arm(name, right.astype(float), one * nfe, 2 * one * nfe, one, one)


def test_an_arm_of_two_families_is_listed_once():
    first, again, other = arm("fixed:4", 4, 0.6), arm("fixed:4", 4, 0.6), arm("best_of:2x4", 8, 0.7)
    listed = distinct([first, again, other, first])
    assert [each.name for each in listed] == ["fixed:4", "best_of:2x4"]
    rows = page.arm_table(listed, CLOCK, np.random.default_rng(0))[2:]
    assert rows[0] == "| fixed:4 | 0.600 [0.502, 0.691] | 4.00 | 8.0 | 0.303 |"
    with pytest.raises(ValueError, match="two different arms are named 'fixed:4'"):
        distinct([first, arm("fixed:4", 4, 0.7)])


def test_a_method_stands_once_in_each_table_of_the_page():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    tables = [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M)]
    methods = [[row.split("|")[1].strip() for row in table[2:]] for table in tables if "method" in table[0]]
    assert len(methods) > 3 and len(methods[0]) > 50
    for names in methods:
        assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
    for table in tables:
        assert "| seconds |" not in table[0], "says how they were made"


def test_the_cards_results_say_how_seconds_were_made():
    found = page.card_results([arm("seed-0@0.004", 5, 0.9)], CLOCK, np.random.default_rng(0))
    assert "no wall clock of whole pictures" in found["about"]
    assert found["rows"][0]["seconds"] == {"estimate": 0.363}


def test_the_frontier_can_be_read():
    families = {
        name: [arm(f"{name}{n}", 3.5 + place + 6 * n, 0.5 + place / 20 + n / 50) for n in range(7)]
        for place, name in enumerate(FAMILIES)
    }
    families["fixed DDIM"].append(arm("fixed:50", 50, 0.84))
    assert_legible(page.frontier_plot(families, CLOCK))


def test_the_learning_curves_can_be_read():
    history = [
        {"decisions": 2e4 * n, "regret_to_constant": 0.2 / n - 0.1, "regret_to_oracle": 0.3 / n, "nfe": 4 + 5 / n}
        for n in range(1, 31)
    ]
    assert_legible(page.curve_plot({f"seed {seed}": history for seed in range(3)}))


def test_words_stand_to_the_left_of_a_strip():
    strip = np.full((122, 288, 3), 200, np.uint8)
    found = with_words(strip, "a photo of three blue zebras and a blue wine glass: 12 NFE, wrong")
    assert found.shape == (122, 190 + 288, 3) and (found[:, 190:] == strip).all()
    column = found[:, :190].min(axis=2) < 128
    assert not column[:, 0].any() and not column[:, -4:].any()  # nothing is cut at either side
    lines = np.flatnonzero(np.diff(np.r_[0, column.any(axis=1).astype(int), 0]) == 1)
    assert 3 <= len(lines) <= 5

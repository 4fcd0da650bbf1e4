"""The page's HTML: whatever a visitor typed is text."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from addiffusion_env.agents.make import make_policy
from addiffusion_env.backbones.emoji.guide import EmojiGuide
from addiffusion_env.samplers import make_sampler
from addiffusion_lab.demo import page
from addiffusion_lab.demo.app import showing
from addiffusion_lab.demo.takes import Moment, Take

HOSTILE = '<img src=x onerror=alert(1)> "</q><script>" ${1} {{x}} `y` ../../etc/passwd & \\'


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def parsed(html):
    parser = Tags()
    parser.feed(html)
    return parser


def test_hostile_text_comes_back_as_text():
    tree = parsed(page.stage(HOSTILE, HOSTILE, [Take("policy")], ["fixed:5"]))
    assert {tag for tag, _ in tree.found} <= {"div", "h3", "h4", "q", "span"}
    assert tree.text.count(HOSTILE) == 2
    shown = page.message(HOSTILE)
    assert not set("${}`") & set(re.sub(r"&#\d+;", "", shown))  # nothing for a template to read


def test_a_filmstrip_has_a_cell_a_decision_and_the_chosen_one_marked():
    moment = Moment(3, 2.0, np.zeros((8, 8, 3), np.uint8), 2, np.array([0.25, 0.05, 0.7]), 0.1, np.ones((4, 4)))
    done = Take("policy", (moment,), 4.5, 0.25, np.zeros((8, 8, 3), np.uint8), 0.5, True, "correct")
    text = page.filmstrip(done)
    assert text.count('class="ad-cell') == 2 and "step 3" in text and "finished &middot; 4.5 NFE" in text
    assert re.search(r'ad-bar ad-chosen"><span>refine</span>.*?width:70%.*?0\.70', text)
    assert "4.5 NFE" in page.card(done) and "0.25 s" in page.card(done) and "as asked" in page.card(done)


def test_the_page_says_what_decides_and_not_at_which_cost(studio):
    """The visitor changes the cost per NFE."""
    assert parsed(page.about(studio)).text == "Model: emoji. Policy: trained."
    assert page.policy_words(make_policy("emoji_rule")) == "a calibrated rule"
    assert page.policy_words(make_sampler("stop:2")) == "stop:2"


def test_samplers_have_plain_names():
    assert [page.title(name) for name in ("policy", "fixed:1", "fixed:50")] == [
        "Policy",
        "1 fixed step",
        "50 fixed steps",
    ]


def test_the_vocabulary_names_every_thing():
    assert "teddy bear" in EmojiGuide.vocabulary() and "left of" in EmojiGuide.vocabulary()


@pytest.mark.slow
def test_a_showing_streams_the_filmstrip_and_then_the_comparators(studio):
    stages = list(showing(studio, "a photo of a dog", 0, 0.015))
    assert len(stages) > 10
    assert "data-sampler=" in stages[0] and "fixed" not in stages[0]
    last = parsed(stages[-1])
    samplers = [attrs["data-sampler"] for _, attrs in last.found if "data-sampler" in attrs]
    assert samplers[0] == "policy" and samplers[2] == "fixed:50" and re.fullmatch(r"fixed:\d+", samplers[1])
    assert "50 NFE" in last.text and "waits" not in last.text and "drawing" not in last.text


@pytest.mark.parametrize(
    ("text", "seed", "cost_per_nfe", "told"),
    [
        ("", 0, 0.01, "There is no prompt"),
        ("<b>" * 40_000, 0, 0.01, "120,000 characters"),
        ("a dog\x07", 0, 0.01, "control character U+0007"),
        ("a dog", None, 0.01, "seed must be a whole number"),
        ("a dog", -1, 0.01, "seed must be a whole number"),
        ("a dog", 2**40, 0.01, "seed must be a whole number"),
        ("a dog", 0, -1.0, "The cost per NFE must be 0 or more"),
        ("<img src=x onerror=alert(1)> {{constructor}} ${1+1} ../../etc/passwd", 0, 0.01, "text window holds 32"),
    ],
)
def test_what_cannot_be_shown_is_a_message(studio, text, seed, cost_per_nfe, told):
    last = parsed(list(showing(studio, text, seed, cost_per_nfe))[-1])
    assert told in last.text and {tag for tag, _ in last.found} == {"div"}
    assert len(last.text) < 600
    assert "truncate_prompts" not in last.text and "draws something" not in last.text

"""What visitors type."""

import pytest

from addiffusion_env.backbones import traits_of
from addiffusion_env.backbones.emoji.guide import EmojiGuide, unknown_words
from addiffusion_env.errors import PromptError
from addiffusion_lab.demo.prompts import guide_of, read_prompt

EMOJI = traits_of("emoji")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no prompt"),
        (" \n\t ", "There is no prompt"),
        ("a" * 100_000, r"100,000 characters; the maximum is 400"),
        ("a dog\x00", r"control character U\+0000"),
        ("a dog\x1b[31m", r"control character U\+001B"),
        ("a \u202egod", r"control character U\+202E"),
        ("a dog \ud800", r"control character U\+D800"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_message(text, message):
    with pytest.raises(PromptError, match=message) as caught:
        read_prompt(text, EMOJI)
    assert caught.value.remedy and len(str(caught.value)) < 200


def test_spaces_and_line_breaks_do_not_matter():
    assert read_prompt(" a photo\n of  a\tdog ", EMOJI).text == "a photo of a dog"


@pytest.mark.parametrize("text", EmojiGuide.examples)
def test_examples_can_be_drawn_and_judged(text):
    prompt = read_prompt(text, EMOJI)
    assert prompt.requirements is not None and EmojiGuide.advice(prompt) == ""


def test_strange_words_are_named():
    prompt = read_prompt("a photo of a dragon, a wizard and a dog", EMOJI)
    assert '"dragon", "wizard"' in guide_of(EMOJI).advice(prompt)
    assert guide_of(traits_of("sd15")).advice(prompt) == ""  # other models know other words
    assert unknown_words("x" * 300) == ["x" * 24]


def test_a_sentence_of_known_words_is_told_its_form():
    assert "joined by" in EmojiGuide.advice(read_prompt("a dog on a dog", EMOJI)) or unknown_words("on")
    assert "joined by" in EmojiGuide.advice(read_prompt("five red left dog", EMOJI)) or unknown_words("five")
    assert "joined by" in EmojiGuide.advice(read_prompt("red of the dog", EMOJI))

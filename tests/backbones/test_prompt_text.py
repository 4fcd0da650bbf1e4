"""Tokenising: prompts that do not fit are refused or truncated, and content tokens are found."""

from __future__ import annotations

import pytest

from addiffusion_env.backbones.base import check_prompts
from addiffusion_env.backbones.text import content_positions, tokenize
from addiffusion_env.errors import PromptError
from addiffusion_lab.tiny_pipelines.parts import clip_tokenizer, t5_tokenizer


@pytest.fixture(scope="module")
def clip():
    return clip_tokenizer()


def test_ids_are_padded_to_the_window(clip):
    ids = tokenize(clip, ["a b", "c"], 10)
    assert ids.shape == (2, 10)
    assert ids[:, 0].tolist() == [clip.bos_token_id] * 2
    assert (ids[1, 2:] == clip.eos_token_id).all()


def test_a_prompt_that_just_fits_and_one_that_does_not(clip):
    fits = "a " * 8  # and two special tokens
    assert tokenize(clip, [fits], 10)[0, -1] == clip.eos_token_id
    with pytest.raises(PromptError, match="prompt of 11 tokens, the text window holds 10") as caught:
        tokenize(clip, ["b", fits + "z"], 10)
    assert "truncate_prompts=true" in caught.value.remedy
    cut = tokenize(clip, [fits + "z"], 10, truncate=True)
    assert (cut == tokenize(clip, [fits], 10)).all()


def test_content_is_neither_special_nor_a_stop_word():
    tokenizer = t5_tokenizer()
    ids = tokenize(tokenizer, ["a photo of the red cup and dog", "a the"], 12)
    # a 0, photo 1, of 2, the 3, red 4, cup 5, and 6, dog 7, then the end and padding
    assert content_positions(tokenizer, ids) == ((4, 5, 7), ())


@pytest.mark.parametrize(("prompts", "cause"), [("a dog", "one string"), ([], "no prompts"), (["a", 3], "got int")])
def test_prompts_that_are_none(prompts, cause):
    with pytest.raises(PromptError, match=cause):
        check_prompts(prompts)
